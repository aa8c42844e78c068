//! Who may talk to the API server: static users, service account tokens, kubeconfigs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::management::API_SERVER;

/// How long a service account's token is valid: longer than any lab lives, so that none is renewed.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// Somebody whom the API server knows by a static token.
#[derive(Clone, Copy, Debug)]
pub enum User {
    /// May do everything.
    Admin,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-proxy, on every node.
    KubeProxy,
}

impl User {
    pub(crate) const ALL: [Self; 3] = [Self::Admin, Self::ControllerManager, Self::KubeProxy];

    fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ControllerManager => "system:kube-controller-manager",
            Self::KubeProxy => "system:kube-proxy",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Admin => "system:masters",
            Self::ControllerManager | Self::KubeProxy => "",
        }
    }

    pub(crate) fn token(self) -> String {
        format!("{}-token", self.file_stem())
    }

    pub(crate) fn file_stem(self) -> &'static str {
        self.name().trim_start_matches("system:")
    }

    /// Its line in the API server's token file.
    pub(crate) fn line(self) -> String {
        format!("{},{name},{name},\"{}\"\n", self.token(), self.group(), name = self.name())
    }
}

/// Writes a kubeconfig that only its owner can read.
pub(crate) fn write_kubeconfig(path: &Path, authority: &Path, token: &str) -> Result<()> {
    let cluster = json!({"server": format!("https://{API_SERVER}:6443"), "certificate-authority": authority});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    });
    // JSON is YAML.
    write_private(path, &config.to_string())
}

/// A token of a service account, bound to the Pod of this name and uid.
pub(crate) async fn service_account_token(
    client: &Client,
    namespace: &str,
    account: &str,
    pod: Option<(String, String)>,
    audiences: Vec<String>,
) -> Result<String> {
    let bound_object_ref = pod.map(|(name, uid)| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(name),
        uid: Some(uid),
    });
    let request = TokenRequest {
        spec: TokenRequestSpec { audiences, bound_object_ref, expiration_seconds: Some(TOKEN_SECONDS) },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("no token for service account {namespace}/{account}"))?;
    Ok(answer.status.context("the API server returned no token")?.token)
}

/// A client with what the kubeconfig says. The API server is not asked.
pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).context("the lab's kubeconfig")?;
    let config =
        Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.context("the lab's kubeconfig")?;
    Client::try_from(config).context("cannot make a Kubernetes client")
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}
