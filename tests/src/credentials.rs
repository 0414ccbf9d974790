//! Who is who in a local cluster: one authority, the certificates of servers and users that it
//! signs, and kubeconfigs. No client, no clock: the certificates never expire, their cluster does.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

/// The arcs of `id-at-organizationName`, the attribute that Kubernetes reads groups from.
const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate, without its authority's.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// How a kubeconfig logs in.
#[derive(Clone, Copy, Debug)]
pub enum Login<'a> {
    /// With a client certificate.
    Certificate(&'a Identity),
    /// With a bearer token.
    Token(&'a str),
}

/// The authority of a cluster.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one, with a key that nobody else has.
    ///
    /// # Errors
    /// The key or the signature cannot be made.
    pub fn generate() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "opensandbox-local-cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate of a server with these names and addresses.
    ///
    /// # Errors
    /// A name is none, or the signature cannot be made.
    pub fn server(&self, name: &str, alternative_names: &[&str]) -> Result<Identity> {
        let names = alternative_names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        self.sign(
            CertificateParams::new(names)?,
            subject,
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    /// Certificate that makes its bearer `user`, a member of `groups` (besides
    /// `system:authenticated`, which all users are members of). Two groups at most: rcgen keeps one
    /// value per type of attribute, and there are two ways to write the type that means a group.
    /// Two is what a service account has.
    ///
    /// # Errors
    /// More than two groups, or the signature cannot be made.
    pub fn user(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        let mut subject = DistinguishedName::new();
        let types = [
            DnType::OrganizationName,
            DnType::CustomDnType(ORGANIZATION.to_vec()),
        ];
        if groups.len() > types.len() {
            bail!(
                "a certificate holds {} groups at most, not {}",
                types.len(),
                groups.len()
            );
        }
        for (attribute, group) in types.into_iter().zip(groups) {
            subject.push(attribute, *group);
        }
        subject.push(DnType::CommonName, user);
        self.sign(
            CertificateParams::default(),
            subject,
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        subject: DistinguishedName,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        params.distinguished_name = subject;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// Private and public key, PEM, that tokens of service accounts are signed and checked with.
///
/// # Errors
/// The key cannot be made.
pub fn token_keys() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// A kubeconfig for `server`, complete in itself. It is JSON, which is YAML.
///
/// # Errors
/// None that can be met; serde's signature.
pub fn kubeconfig(server: &str, authority: &str, user: &str, login: Login<'_>) -> Result<String> {
    let login = match login {
        Login::Certificate(identity) => json!({
            "client-certificate-data": base64(&identity.certificate)?,
            "client-key-data": base64(&identity.key)?,
        }),
        Login::Token(token) => json!({ "token": token }),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "local",
            "cluster": {"server": server, "certificate-authority-data": base64(authority)?},
        }],
        "users": [{"name": user, "user": login}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": user}}],
        "current-context": "local",
    });
    Ok(serde_json::to_string_pretty(&config)?)
}

/// The way Kubernetes writes bytes in JSON.
fn base64(text: &str) -> Result<Value> {
    Ok(serde_json::to_value(ByteString(text.as_bytes().to_vec()))?)
}

/// Writes a file that its owner alone can read, and returns its path.
///
/// # Errors
/// It cannot be written.
pub fn write_private(path: PathBuf, text: &str) -> Result<PathBuf> {
    let write = |path: &Path| {
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text.as_bytes())
    };
    write(&path).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_group_is_refused() {
        let authority = Authority::generate().unwrap();
        authority.user("somebody", &["one", "two"]).unwrap();
        let error = authority
            .user("somebody", &["one", "two", "three"])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "a certificate holds 2 groups at most, not 3"
        );
    }

    #[test]
    fn private_files_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = write_private(directory.path().join("key"), "secret").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn keys_are_not_shown() {
        let identity = Authority::generate()
            .unwrap()
            .user("somebody", &[])
            .unwrap();
        assert!(!format!("{identity:?}").contains("PRIVATE KEY"));
    }
}
