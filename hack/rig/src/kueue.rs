//! Kueue: its configuration and its command line.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::certs::write_private;
use crate::control_plane::{BURST, Layout, QPS};
use crate::frameworks::Framework;
use crate::manager::Ports;
use crate::process::ProcessSpec;
use crate::ready::Health;

/// Namespaces whose workloads Kueue leaves alone.
const UNMANAGED: [&str; 3] = ["kube-system", "kueue-system", "slicegate-system"];

/// Kueue's own configuration, changed by a JSON merge patch.
pub fn config(
    layout: &Layout<'_>,
    ports: &Ports,
    frameworks: impl IntoIterator<Item = Framework>,
    patch: &Value,
) -> Result<String> {
    let mut integrations = vec!["batch/job", "pod", "deployment", "statefulset"];
    integrations.extend(frameworks.into_iter().map(Framework::integration));
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
        "integrations": {"frameworks": integrations},
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
