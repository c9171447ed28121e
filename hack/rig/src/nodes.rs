//! Emulated nodes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::kwok::FAKE_NODE;

const LIMIT: Duration = Duration::from_mins(1);

/// An emulated node as one wants it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Labels on top of the usual ones.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations on top of the one that marks it as emulated.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Processors, as a Kubernetes quantity.
    #[serde(default = "default_cpu")]
    pub cpu: String,
    /// Memory, as a Kubernetes quantity.
    #[serde(default = "default_memory")]
    pub memory: String,
    /// How many pods it takes.
    #[serde(default = "default_pods")]
    pub pods: u32,
}

fn default_cpu() -> String {
    "64".into()
}

fn default_memory() -> String {
    "512Gi".into()
}

fn default_pods() -> u32 {
    110
}

impl NodeSpec {
    /// A node with 64 processors, 512 GiB and room for 110 pods.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            cpu: default_cpu(),
            memory: default_memory(),
            pods: default_pods(),
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    fn node(&self) -> Result<Node> {
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), self.name.clone()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), "amd64".to_owned()),
            ("type".to_owned(), "kwok".to_owned()),
        ]);
        labels.extend(self.labels.clone());
        let mut annotations = BTreeMap::from([(FAKE_NODE.0.to_owned(), FAKE_NODE.1.to_owned())]);
        annotations.extend(self.annotations.clone());
        let room = json!({
            "cpu": self.cpu,
            "memory": self.memory,
            "pods": self.pods.to_string(),
            "ephemeral-storage": "1Ti",
        });
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels, "annotations": annotations},
            "status": {"capacity": room, "allocatable": room},
        }))
        .context("build a node")
    }
}

/// Creates nodes and waits until pods can be scheduled to them. A node that exists already is left as it is.
pub async fn add(client: &kube::Client, specs: &[NodeSpec]) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    for spec in specs {
        match api.create(&PostParams::default(), &spec.node()?).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            result => {
                result.with_context(|| format!("create node {}", spec.name))?;
            }
        }
    }
    let deadline = Instant::now() + LIMIT;
    for spec in specs {
        while !schedulable(&api.get(&spec.name).await.with_context(|| format!("read node {}", spec.name))?) {
            if Instant::now() >= deadline {
                bail!("node {} was not Ready within {} s", spec.name, LIMIT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Ready, and no longer tainted for not having been: the taint goes a moment later, and only then pods fit.
pub fn schedulable(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        && !taints.any(|taint| taint.key == "node.kubernetes.io/not-ready")
}
