//! The volumes of a Pod as folders: service account tokens, Secrets, ConfigMaps, what the Pod says of itself, and empty ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, SecretVolumeSource,
    ServiceAccountTokenProjection, Volume,
};
use kube::{Api, Client, ResourceExt as _};

use super::environment::{Facts, field_value};
use crate::access::service_account_token;

/// Makes a folder for each volume of the Pod, filled, and returns them by name.
///
/// # Errors
/// When an object is missing (the caller tries again) or the lab does not know the kind of volume.
pub async fn prepare(client: &Client, facts: Facts<'_>, folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut folders = BTreeMap::new();
    for volume in facts.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let path = folder.join("volumes").join(&volume.name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fill(client, facts, volume, &path).await.with_context(|| format!("volume {}", volume.name))?;
        folders.insert(volume.name.clone(), path);
    }
    Ok(folders)
}

async fn fill(client: &Client, facts: Facts<'_>, volume: &Volume, path: &Path) -> Result<()> {
    if volume.empty_dir.is_some() {
        use std::os::unix::fs::PermissionsExt as _;
        return fs::set_permissions(path, fs::Permissions::from_mode(0o777)).context("cannot set its mode");
    }
    if let Some(source) = &volume.config_map {
        return config_map(client, facts.pod, &source.name, source.items.as_deref(), path).await;
    }
    if let Some(source) = &volume.downward_api {
        return downward(facts, source.items.as_deref(), path);
    }
    if let Some(source) = &volume.secret {
        return secret(client, facts.pod, source, path).await;
    }
    match &volume.projected {
        Some(source) => projected(client, facts, source, path).await,
        None => bail!("the lab knows projected, secret, configMap, downwardAPI and emptyDir volumes only"),
    }
}

async fn projected(client: &Client, facts: Facts<'_>, source: &ProjectedVolumeSource, path: &Path) -> Result<()> {
    for source in source.sources.iter().flatten() {
        if let Some(wanted) = &source.service_account_token {
            token(client, facts.pod, wanted, path).await?;
        } else if let Some(wanted) = &source.config_map {
            config_map(client, facts.pod, &wanted.name, wanted.items.as_deref(), path).await?;
        } else if let Some(wanted) = &source.downward_api {
            downward(facts, wanted.items.as_deref(), path)?;
        } else {
            bail!("the lab projects service account tokens, ConfigMaps and the downward API only");
        }
    }
    Ok(())
}

/// The token is bound to the Pod, so that it names the Pod and its node, and dies with the Pod.
async fn token(client: &Client, pod: &Pod, wanted: &ServiceAccountTokenProjection, path: &Path) -> Result<()> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let namespace = pod.namespace().unwrap_or_default();
    let bound = Some((pod.name_any(), pod.uid().unwrap_or_default()));
    let audiences = wanted.audience.iter().filter(|audience| !audience.is_empty()).cloned().collect();
    let token = service_account_token(client, &namespace, account, bound, audiences).await?;
    write(path, &wanted.path, &token)
}

/// All keys of a Secret, as they are now.
async fn secret(client: &Client, pod: &Pod, source: &SecretVolumeSource, path: &Path) -> Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let name = source.secret_name.as_deref().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let secret = secrets.get_opt(name).await.with_context(|| format!("Secret {namespace}/{name}"))?;
    if secret.is_none() && source.optional != Some(true) {
        bail!("there is no Secret {namespace}/{name}");
    }
    for (key, value) in secret.and_then(|secret| secret.data).unwrap_or_default() {
        let path = path.join(&key);
        fs::write(&path, value.0).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn config_map(client: &Client, pod: &Pod, name: &str, items: Option<&[KeyToPath]>, path: &Path) -> Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let map = maps.get(name).await.with_context(|| format!("ConfigMap {namespace}/{name}"))?;
    let data = map.data.unwrap_or_default();
    match items {
        Some(items) => {
            for item in items {
                let text = data.get(&item.key).with_context(|| format!("ConfigMap {name} has no key {}", item.key))?;
                write(path, &item.path, text)?;
            }
        }
        None => {
            for (key, text) in &data {
                write(path, key, text)?;
            }
        }
    }
    Ok(())
}

fn downward(facts: Facts<'_>, items: Option<&[DownwardAPIVolumeFile]>, path: &Path) -> Result<()> {
    for item in items.unwrap_or_default() {
        let field = item.field_ref.as_ref().context("the lab knows fieldRef only")?;
        let value =
            field_value(&field.field_path, facts).with_context(|| format!("there is no field {}", field.field_path))?;
        write(path, &item.path, &value)?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}
