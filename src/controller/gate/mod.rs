//! The gate: every pod that asks for MIG slices is created with a scheduling gate, by a MutatingAdmissionPolicy, or by a webhook
//! in this process where the API server does not serve such policies.
//!
//! Which of the two, is chosen at install time: `config/default` or `config/webhook`. [`presence`] finds out whether one of them
//! is there. The webhook runs in every replica of the controller, leader or not: what it answers depends on the pod alone.
//!
//! Where policies are served, another one gives pods GPU memory in namespaces that count it; otherwise this webhook does, too.

pub mod certificate;
mod files;
pub mod keeper;
pub mod memory;
pub mod pod;
pub mod presence;
pub mod review;
pub mod rotation;
pub mod shown;

use std::collections::BTreeSet;
use std::future::pending;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::api::convert::now;
use crate::runtime::Clients;
use keeper::{KeepError, Keeper};
use rotation::Lifetimes;
use shown::Shown;

/// Pause between attempts to get a first certificate.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the webhook goes on after the rest of the process has ended: until all nodes know that the Service leads elsewhere.
const LAME: Duration = Duration::from_secs(2);
/// How long answers that are under way may take then.
const GOODBYE: Duration = Duration::from_secs(1);

/// Arguments of the webhook.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "gate")]
pub struct Args {
    /// Gate pods by a webhook in this process: for API servers that do not serve MutatingAdmissionPolicy v1 (before 1.36).
    #[arg(long)]
    pub gate_webhook: bool,
    /// Where the webhook listens.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9443")]
    pub webhook_listen: SocketAddr,
    /// Folder with the webhook's tls.crt and tls.key, taken up whenever they change. Somebody else, such as cert-manager,
    /// keeps them and the caBundle. Without it the controller does.
    #[arg(long, value_name = "FOLDER")]
    pub webhook_cert_dir: Option<PathBuf>,
    /// DNS names or IP addresses by which the API server calls the webhook, for the controller's own certificates.
    #[arg(
        long,
        value_name = "HOST",
        value_delimiter = ',',
        default_value = "slicegate-gate.slicegate-system.svc"
    )]
    pub webhook_host: Vec<String>,
    /// Namespace of the Secret slicegate-gate, which holds the controller's own certificates.
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "slicegate-system")]
    pub webhook_namespace: String,
    /// How long one of the controller's own certificates is valid, in seconds. It is replaced when a third of that is left.
    #[arg(long, value_name = "SECONDS", default_value_t = 90 * 24 * 3600)]
    pub webhook_cert_seconds: u64,
    /// How long the API server has been told to trust a certificate before it is used, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub webhook_trust_seconds: u64,
}

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The arguments contradict each other.
    #[error(
        "--webhook-cert-seconds={certificate} must be at least six times --webhook-trust-seconds={trust}: a certificate is \
         replaced when a third of its time is left, and must be trusted for that long before it is used"
    )]
    Lifetimes {
        /// Seconds that a certificate is valid.
        certificate: u64,
        /// Seconds that it is trusted before.
        trust: u64,
    },
    /// It cannot listen.
    #[error("cannot listen on {address} for the gate webhook: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else's certificate cannot be used.
    #[error(transparent)]
    Files(#[from] files::FilesError),
    /// Our ServiceAccount may not keep certificates.
    #[error("not allowed to keep the gate webhook's certificates; apply config/webhook: {0}")]
    Forbidden(KeepError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS for the gate webhook: {0}")]
    Tls(#[from] rustls::Error),
    /// A part of it ended that never should.
    #[error("the gate webhook ended: {0}")]
    Ended(String),
}

/// The webhook of this process; without `--gate-webhook`, nothing.
#[derive(Debug, Default)]
pub struct Gate {
    parts: JoinSet<GateError>,
    handle: Handle<SocketAddr>,
}

impl Gate {
    /// Starts it. It has a certificate, and answers, when this returns.
    pub async fn start(args: &Args, clients: &Clients) -> Result<Self, GateError> {
        let mut gate = Self::default();
        if !args.gate_webhook {
            return Ok(gate);
        }
        let (certificate, trust) = (args.webhook_cert_seconds, args.webhook_trust_seconds);
        if certificate < trust.saturating_mul(6) {
            return Err(GateError::Lifetimes { certificate, trust });
        }
        let address = args.webhook_listen;
        let listener = TcpListener::bind(address).map_err(|source| GateError::Listen { address, source })?;

        let shown = Shown::default();
        if let Some(folder) = args.webhook_cert_dir.clone() {
            files::load(&folder, &shown)?;
            let shown = shown.clone();
            gate.parts.spawn(async move { files::follow(folder, shown).await.into() });
        } else {
            let hosts: BTreeSet<String> = args.webhook_host.iter().cloned().collect();
            let lifetimes = Lifetimes {
                certificate: Duration::from_secs(certificate),
                trust: Duration::from_secs(trust),
            };
            let mut keeper =
                Keeper::new(&clients.calls, &args.webhook_namespace, hosts, lifetimes, shown.clone());
            while !shown.is_set() {
                match keeper.step(now()).await {
                    Ok(_) => {}
                    Err(error) if error.is_forbidden() => return Err(GateError::Forbidden(error)),
                    Err(error) => {
                        warn!(%error, "no certificate for the gate webhook yet; trying again");
                        sleep(PAUSE).await;
                    }
                }
            }
            let watches = clients.watches.clone();
            gate.parts.spawn(async move {
                keeper.run(watches).await;
                GateError::Ended("nobody keeps its certificates".to_owned())
            });
        }
        let serving = serve(listener, &shown, gate.handle.clone())?;
        gate.parts.spawn(async move {
            match serving.await {
                Ok(()) => GateError::Ended("it was told to".to_owned()),
                Err(error) => GateError::Ended(error.to_string()),
            }
        });
        info!(%address, "the gate webhook answers");
        Ok(gate)
    }

    /// Where it listens; `None` without `--gate-webhook`.
    pub async fn address(&self) -> Option<SocketAddr> {
        if self.parts.is_empty() { None } else { self.handle.listening().await }
    }

    /// Resolves when a part of it has ended, which none should.
    pub async fn failed(&mut self) -> GateError {
        match self.parts.join_next().await {
            Some(Ok(error)) => error,
            Some(Err(error)) => GateError::Ended(error.to_string()),
            None => pending().await,
        }
    }

    /// Ends it: not before API servers have found another replica, and not in the middle of an answer.
    pub async fn drain(mut self) {
        if self.parts.is_empty() {
            return;
        }
        sleep(LAME).await;
        self.handle.graceful_shutdown(Some(GOODBYE));
        self.failed().await;
    }
}

/// The webhook on a listener, until `handle` ends it.
pub fn serve(
    listener: TcpListener,
    shown: &Shown,
    handle: Handle<SocketAddr>,
) -> Result<impl Future<Output = std::io::Result<()>> + use<>, GateError> {
    let config = RustlsConfig::from_config(Arc::new(shown.server_config()?));
    let address = listener.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
    let listen = |source| GateError::Listen { address, source };
    listener.set_nonblocking(true).map_err(listen)?;
    let server = axum_server::from_tcp_rustls(listener, config).map_err(listen)?.handle(handle);
    Ok(server.serve(review::router().into_make_service()))
}
