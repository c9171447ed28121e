//! Controller managers outside of the cluster that they serve: Kueue and those of job frameworks.
//!
//! Their manifests are rendered from their own modules. What would run them as pods is left out, and the API server is
//! told to call their webhooks at a loopback address instead of through a Service, of which there is none to route to.

use std::path::Path;

use anyhow::Result;
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::certs::Pki;
use crate::manifests::{kind, render};
use crate::ports::Reserved;

/// The objects of the manager in `module`, rewritten for one that serves its webhooks at `webhooks`
/// (`https://127.0.0.1:PORT`).
pub async fn objects(
    kubectl: &Path,
    module: &Path,
    pki: &Pki,
    webhooks: &str,
    config: &str,
) -> Result<Vec<Value>> {
    let mut objects = render(kubectl, &module.join("config/default")).await?;
    objects.retain(|object| !matches!(kind(object), "Deployment" | "Service" | "Secret" | "APIService"));
    let bundle = serde_json::to_value(ByteString(pki.ca().as_bytes().to_vec()))?;
    for object in &mut objects {
        for call in webhook_clients(object) {
            let path = call["service"]["path"].as_str().unwrap_or_default().to_owned();
            *call = json!({"url": format!("{webhooks}{path}"), "caBundle": bundle});
        }
        // The configuration that is really in force, for whoever looks it up in the cluster.
        if kind(object) == "ConfigMap" {
            object["data"] = json!({"controller_manager_config.yaml": config});
        }
    }
    Ok(objects)
}

/// Every place in an object that says how to reach a webhook through a Service.
fn webhook_clients(object: &mut Value) -> Vec<&mut Value> {
    let mut clients: Vec<&mut Value> = match kind(object) {
        "CustomResourceDefinition" => {
            object.pointer_mut("/spec/conversion/webhook/clientConfig").into_iter().collect()
        }
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => object["webhooks"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .filter_map(|webhook| webhook.get_mut("clientConfig"))
            .collect(),
        _ => Vec::new(),
    };
    clients.retain(|client| client.get("service").is_some());
    clients
}

/// The ports of a manager that is not started yet.
pub struct Ports {
    /// Its webhooks.
    pub webhooks: Reserved,
    /// Its health.
    pub health: Reserved,
    /// Its metrics.
    pub metrics: Reserved,
}

impl Ports {
    /// Reserves them.
    pub fn new() -> Result<Self> {
        Ok(Self { webhooks: Reserved::new()?, health: Reserved::new()?, metrics: Reserved::new()? })
    }

    /// Where the API server will call.
    pub fn webhook_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.webhooks.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_conversions_and_webhooks() {
        let client = json!({"service": {"name": "s", "namespace": "n", "path": "/p"}});
        let mut definition = json!({
            "kind": "CustomResourceDefinition",
            "spec": {"conversion": {"webhook": {"clientConfig": client}}},
        });
        assert_eq!(webhook_clients(&mut definition).len(), 1);
        let mut webhooks = json!({
            "kind": "MutatingWebhookConfiguration",
            "webhooks": [{"clientConfig": client}, {"clientConfig": {"url": "https://elsewhere"}}],
        });
        assert_eq!(webhook_clients(&mut webhooks).len(), 1);
        assert!(webhook_clients(&mut json!({"kind": "Role"})).is_empty());
    }
}
