//! Slicegate's gate on a rig: the manifests of `config/webhook` for a controller that is a plain process.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::manifests::{self, kind};
use crate::ports::free_port;
use crate::rig::Rig;

/// A webhook at a port of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Webhook {
    port: u16,
}

impl Webhook {
    /// At a free port.
    pub fn new() -> Result<Self> {
        Ok(Self { port: free_port()? })
    }

    /// What the controller must be started with to be this webhook.
    pub fn args(self) -> Vec<String> {
        let port = self.port;
        vec![
            "--gate-webhook".into(),
            format!("--webhook-listen=127.0.0.1:{port}"),
            "--webhook-host=127.0.0.1".into(),
        ]
    }

    /// The objects of `config/webhook`, but for Deployment and DaemonSet. The API server of a rig, which can call no Service,
    /// calls this webhook. With what emulated agents may do.
    pub async fn objects(self, rig: &Rig) -> Result<Vec<Value>> {
        let folder = rig.repo().root().join("config/webhook");
        let mut objects = manifests::render(&rig.kubectl_path(), &folder).await?;
        objects.retain(|object| !matches!(kind(object), "Deployment" | "DaemonSet"));
        let configuration = objects.iter_mut().find(|object| kind(object) == "MutatingWebhookConfiguration");
        let webhooks = configuration.context("config/webhook has no webhook")?["webhooks"].as_array_mut();
        for webhook in webhooks.into_iter().flatten() {
            let client = &mut webhook["clientConfig"];
            let path = client["service"]["path"].as_str().context("the webhook has no path")?;
            *client = json!({"url": format!("https://127.0.0.1:{}{path}", self.port)});
        }
        let rights = rig.repo().root().join("config/emulated/rights/pods.yaml");
        let rights =
            std::fs::read_to_string(&rights).with_context(|| format!("read {}", rights.display()))?;
        objects.extend(manifests::parse(&rights)?);
        Ok(objects)
    }
}
