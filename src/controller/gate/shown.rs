//! The certificate that the webhook's server shows, which changes while it runs.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// Certificate or key is no PEM.
    #[error("certificate or key is not PEM: {0}")]
    Pem(#[from] pem::Error),
    /// They do not belong together, or the key is of an unknown kind.
    #[error("certificate and key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// What connections are shown from now on. Those that are open go on. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Shown {
    /// Shows a certificate, with those that lead to its authority, and its key; both PEM.
    pub fn show(&self, certificate: &str, key: &str) -> Result<(), ShowError> {
        let chain =
            CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, pem::Error>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let shown = CertifiedKey::from_der(chain, key, &provider())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(shown));
        Ok(())
    }

    /// Whether there is one to show.
    pub fn is_set(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A server that shows it: TLS 1.2 and 1.3, HTTP/1.1.
    pub fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
        let builder = ServerConfig::builder_with_provider(Arc::new(provider()));
        // The API server's own certificate is not asked for: whoever can connect may ask whether a pod would be gated.
        Ok(builder
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone())))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The one that kube's client uses.
fn provider() -> CryptoProvider {
    ring::default_provider()
}
