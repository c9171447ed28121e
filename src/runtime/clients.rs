//! Clients of the API server.

use std::time::Duration;

use kube::{Client, Config};

/// How long the API server may take to answer a call before the connection is given up.
const CALL: Duration = Duration::from_secs(20);

/// Two clients with the same identity: a watch may be silent for minutes, a call may not.
#[derive(Clone)]
pub struct Clients {
    /// For watches.
    pub watches: Client,
    /// For everything else.
    pub calls: Client,
}

impl Clients {
    /// From the kubeconfig or the pod's ServiceAccount, whichever there is.
    pub async fn infer() -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut config = Config::infer().await?;
        let watches = Client::try_from(config.clone())?;
        config.read_timeout = Some(CALL);
        config.write_timeout = Some(CALL);
        Ok(Self { watches, calls: Client::try_from(config)? })
    }
}
