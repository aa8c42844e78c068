//! Keys and certificates of one control plane, made with the `openssl` program. They live as long as the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::run;

/// The files of one control plane.
#[derive(Clone, Debug)]
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Makes an authority, the API server's certificate for `names` (openssl's form: `IP:10.0.0.1`, `DNS:kubernetes`) and the
    /// key that signs service account tokens.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn create(folder: &Path, names: &[&str]) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let extensions = format!("subjectAltName={}\nextendedKeyUsage=serverAuth\n", names.join(","));
        fs::write(folder.join("apiserver.ext"), extensions).context("cannot write the certificate's extensions")?;
        let openssl = |arguments: &str| run(Command::new("openssl").current_dir(folder).args(arguments.split(' ')));
        for key in ["ca", "apiserver", "service-account"] {
            openssl(&format!("ecparam -name prime256v1 -genkey -noout -out {key}.key"))?;
        }
        openssl("ec -in service-account.key -pubout -out service-account.pub")?;
        openssl("req -x509 -new -key ca.key -subj /CN=l2lb-lab-ca -days 30 -out ca.crt")?;
        openssl("req -new -key apiserver.key -subj /CN=kube-apiserver -out apiserver.csr")?;
        openssl(
            "x509 -req -in apiserver.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile apiserver.ext -out apiserver.crt",
        )?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// One of the files: `ca.crt`, `apiserver.crt`, `apiserver.key`, `service-account.key`, `service-account.pub`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
