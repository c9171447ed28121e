//! Kinds of job that Kubernetes does not come with, and their controllers.

use anyhow::Result;
use serde_json::json;

use crate::certs::write_private;
use crate::control_plane::{BURST, Layout, QPS};
use crate::manager::Ports;
use crate::process::ProcessSpec;
use crate::ready::Health;

/// A kind of job with a project of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Framework {
    /// JobSet: several Jobs as one.
    JobSet,
    /// LeaderWorkerSet: groups of pods, each with a leader.
    LeaderWorkerSet,
}

impl Framework {
    /// The name of its program and process.
    pub fn program(self) -> &'static str {
        match self {
            Self::JobSet => "jobset",
            Self::LeaderWorkerSet => "lws",
        }
    }

    /// The Go module that its program and its manifests come from.
    pub fn module(self) -> &'static str {
        match self {
            Self::JobSet => "sigs.k8s.io/jobset",
            Self::LeaderWorkerSet => "sigs.k8s.io/lws",
        }
    }

    /// Its name in Kueue's `integrations.frameworks`.
    pub fn integration(self) -> &'static str {
        match self {
            Self::JobSet => "jobset.x-k8s.io/jobset",
            Self::LeaderWorkerSet => "leaderworkerset.x-k8s.io/leaderworkerset",
        }
    }

    /// Its controller's configuration.
    pub fn config(self, layout: &Layout<'_>, ports: &Ports) -> Result<String> {
        let config = json!({
            "apiVersion": format!("config.{}.x-k8s.io/v1alpha1", self.program()),
            "kind": "Configuration",
            "health": {"healthProbeBindAddress": format!("127.0.0.1:{}", ports.health.port())},
            // Off: nobody looks at them here.
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": ports.webhooks.port(), "certDir": layout.pki.server_dir()},
            "leaderElection": {"leaderElect": false},
            "internalCertManagement": {"enable": false},
            "clientConnection": {"qps": QPS, "burst": BURST},
        });
        Ok(serde_json::to_string_pretty(&config)?)
    }

    /// Its controller's command line.
    pub fn process(self, layout: &Layout<'_>, ports: Ports, config: &str) -> Result<ProcessSpec> {
        let file = layout.dir.join(format!("{}.yaml", self.program()));
        write_private(&file, config)?;
        let health = ports.health.release();
        let webhooks = ports.webhooks.release();
        Ok(layout
            .program(self.program())
            .arg(format!("--config={}", file.display()))
            .arg(layout.kubeconfig_flag())
            .port(webhooks)
            .ready_when(Health::Answers(format!("http://127.0.0.1:{health}/readyz")))
            .ready_when(Health::Listens(webhooks)))
    }
}
