//! The same Job without Slicegate: devices of a plain device plugin, which the node shows all the time, through the same Kueue
//! without a check.

use anyhow::{Context, Result};
use slicegate_rig::OtherPlugin;
use slicegate_rig::real_operator::RealOperator;

/// The resource, and the LocalQueue for it.
pub const RESOURCE: &str = "example.com/slice";
pub const QUEUE: &str = "plain";
/// As many as two GPUs can have slices.
const DEVICES: usize = 14;
const SOCKET: &str = "plain.sock";

const QUEUES: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: plain}
spec:
  namespaceSelector: {}
  queueingStrategy: BestEffortFIFO
  resourceGroups:
  - coveredResources: [cpu, memory, example.com/slice]
    flavors:
    - name: any-80gb
      resources:
      - {name: cpu, nominalQuota: 128}
      - {name: memory, nominalQuota: 1Ti}
      - {name: example.com/slice, nominalQuota: 14}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: plain, namespace: default}
spec: {clusterQueue: plain}
";

/// Sets up queue and plugin. The plugin serves until it is dropped.
pub async fn set_up(real: &RealOperator<'_>) -> Result<OtherPlugin> {
    real.rig.apply_yaml(QUEUES).await?;
    let devices: Vec<String> = (0..DEVICES).map(|number| format!("plain-{number}")).collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let started = OtherPlugin::start(&real.node, SOCKET, RESOURCE, &devices).await;
    started.context("register the plain device plugin")
}
