//! Certificates, keys and the administrator's token of one cluster. They live as long as the cluster's folder.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

const CA_KEY: &str = "ca.key";

/// Where the cluster's key material lies.
#[derive(Debug, Clone)]
pub struct Pki {
    dir: PathBuf,
    ca: String,
    token: String,
}

impl Pki {
    /// Makes a new authority, one server certificate for all parts (they all serve on 127.0.0.1), the key that
    /// signs service account tokens, and an administrator in `system:masters`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;

        let key = KeyPair::generate()?;
        let authority = authority();
        let ca = authority.self_signed(&key)?.pem();
        write_private(&dir.join(CA_KEY), &key.serialize_pem())?;
        let issuer = Issuer::new(authority, key);

        // The last one is the address of the Service `kubernetes`, which pods of real nodes use.
        let names = [
            "127.0.0.1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "10.96.0.1",
        ]
        .map(String::from);
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "slicegate-rig server");
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        let server_key = KeyPair::generate()?;
        let server = server.signed_by(&server_key, &issuer)?.pem();

        // The API server takes an EC public key only from a file of its own: it does not look into a PKCS #8 key.
        let tokens = KeyPair::generate()?;
        let token = random_hex()?;

        let pki = Self { dir: dir.to_owned(), ca, token };
        write_private(&pki.ca_file(), &pki.ca)?;
        // The names that a Kubernetes TLS Secret has when it is mounted: Kueue looks for exactly these.
        write_private(&pki.server_cert(), &server)?;
        write_private(&pki.server_key(), &server_key.serialize_pem())?;
        write_private(&pki.token_key(), &tokens.serialize_pem())?;
        write_private(&pki.token_public_key(), &tokens.public_key_pem())?;
        write_private(&pki.token_file(), &format!("{},admin,admin,\"system:masters\"\n", pki.token))?;
        client_certificate(dir, "apiserver-kubelet-client", "apiserver", "system:masters")?;
        Ok(pki)
    }

    /// The authority's certificate as PEM text.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// The administrator's bearer token.
    pub fn admin_token(&self) -> &str {
        &self.token
    }

    /// The authority's certificate as a file.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The folder that holds `tls.crt` and `tls.key`.
    pub fn server_dir(&self) -> &Path {
        &self.dir
    }

    /// The certificate that every part serves with.
    pub fn server_cert(&self) -> PathBuf {
        self.dir.join("tls.crt")
    }

    /// The key of [`Pki::server_cert`].
    pub fn server_key(&self) -> PathBuf {
        self.dir.join("tls.key")
    }

    /// The certificate and the key with which the API server calls kubelets.
    pub fn kubelet_client(&self) -> (PathBuf, PathBuf) {
        let file = |suffix: &str| self.dir.join(format!("apiserver-kubelet-client.{suffix}"));
        (file("crt"), file("key"))
    }

    /// The key that signs service account tokens.
    pub fn token_key(&self) -> PathBuf {
        self.dir.join("sa.key")
    }

    /// The key that service account tokens are checked with.
    pub fn token_public_key(&self) -> PathBuf {
        self.dir.join("sa.pub")
    }

    /// The API server's static tokens.
    pub fn token_file(&self) -> PathBuf {
        self.dir.join("tokens.csv")
    }
}

/// What the authority says of itself; the same every time, so that its key alone is enough to sign in its name.
fn authority() -> CertificateParams {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "slicegate-rig");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    authority
}

/// Makes a client certificate that the cluster's authority in `dir` signs. Kubernetes reads user and group from it. Gives
/// the paths of certificate and key, `NAME.crt` and `NAME.key` in the same folder.
pub fn client_certificate(dir: &Path, name: &str, user: &str, group: &str) -> Result<(PathBuf, PathBuf)> {
    let file = dir.join(CA_KEY);
    let key = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let issuer = Issuer::new(authority(), KeyPair::from_pem(&key)?);
    let mut client = CertificateParams::default();
    client.distinguished_name = DistinguishedName::new();
    client.distinguished_name.push(DnType::CommonName, user);
    client.distinguished_name.push(DnType::OrganizationName, group);
    client.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    client.use_authority_key_identifier_extension = true;
    let own = KeyPair::generate()?;
    let (certificate, private) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    write_private(&certificate, &client.signed_by(&own, &issuer)?.pem())?;
    write_private(&private, &own.serialize_pem())?;
    Ok((certificate, private))
}

/// Writes a file that only its owner can read.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

fn random_hex() -> Result<String> {
    let mut bytes = [0_u8; 24];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect())
}
