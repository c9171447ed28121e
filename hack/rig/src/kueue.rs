//! Kueue outside of the cluster that it serves.
//!
//! Its manifests are rendered from its own module. What would run it as a pod is left out, and the API server is told
//! to call its webhooks at a loopback address instead of through a Service, of which there is none to route to.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::certs::{Pki, write_private};
use crate::control_plane::{BURST, Layout, QPS};
use crate::manifests::{kind, render};
use crate::ports::Reserved;
use crate::process::ProcessSpec;
use crate::ready::Health;

/// Namespaces whose workloads Kueue leaves alone.
const UNMANAGED: [&str; 3] = ["kube-system", "kueue-system", "slicegate-system"];

/// The objects that Kueue needs, rewritten for a Kueue at `webhooks` (`https://127.0.0.1:PORT`).
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

/// The ports of a Kueue that is not started yet.
pub struct Ports {
    webhooks: Reserved,
    health: Reserved,
    metrics: Reserved,
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

/// Kueue's own configuration, changed by a JSON merge patch.
pub fn config(layout: &Layout<'_>, ports: &Ports, patch: &Value) -> Result<String> {
    let mut config = json!({
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": "kueue-system",
        "health": {"healthProbeBindAddress": format!("127.0.0.1:{}", ports.health.port())},
        "metrics": {
            "bindAddress": format!("127.0.0.1:{}", ports.metrics.port()),
            "enableClusterQueueResources": true,
        },
        "webhook": {"host": "127.0.0.1", "port": ports.webhooks.port(), "certDir": layout.pki.server_dir()},
        "leaderElection": {"leaderElect": false},
        "internalCertManagement": {"enable": false},
        "clientConnection": {"qps": QPS, "burst": BURST},
        "controller": {"groupKindConcurrency": {
            "Job.batch": 10,
            "Pod": 10,
            "Workload.kueue.x-k8s.io": 10,
            "LocalQueue.kueue.x-k8s.io": 5,
            "ClusterQueue.kueue.x-k8s.io": 5,
            "ResourceFlavor.kueue.x-k8s.io": 1,
        }},
        "integrations": {"frameworks": ["batch/job", "pod", "deployment", "statefulset"]},
        "managedJobsNamespaceSelector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": UNMANAGED},
        ]},
        "featureGates": {"VisibilityOnDemand": false},
    });
    json_patch::merge(&mut config, patch);
    Ok(serde_json::to_string_pretty(&config)?)
}

/// The command line of Kueue.
///
/// With certificates of our own it insists on finding those of its metrics at a fixed path below `/etc`. It gets them
/// there in a mount namespace of its own, where a folder of ours is laid over `/etc`; the machine's stays as it is.
pub fn kueue(layout: &Layout<'_>, ports: Ports, config: &str) -> Result<ProcessSpec> {
    let etc = layout.dir.join("kueue-etc");
    let certs = etc.join("kueue/metrics/certs");
    fs::create_dir_all(&certs).with_context(|| format!("create {}", certs.display()))?;
    for name in ["tls.crt", "tls.key"] {
        fs::copy(layout.pki.server_dir().join(name), certs.join(name))?;
    }
    let file = layout.dir.join("kueue.yaml");
    write_private(&file, config)?;

    let health = ports.health.release();
    ports.metrics.release();
    let webhooks = ports.webhooks.release();
    Ok(layout
        .program("kueue")
        .arg(format!("--config={}", file.display()))
        .arg(layout.kubeconfig_flag())
        .arg("--zap-log-level=2")
        .port(webhooks)
        .over_etc(etc)
        .ready_when(Health::Answers(format!("http://127.0.0.1:{health}/readyz")))
        .ready_when(Health::Listens(webhooks)))
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
