//! What happens to nodes, agents, GPUs and pods in their lives, and that a pod keeps its slice through it.

mod absence;
mod endings;
mod failures;
mod history;
mod reboot;
mod remade;
mod restarts;
mod storm;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::Value;
use slicegate::api::mig_node::{SliceState, SliceStatus};

use crate::support::{World, container, job};

/// Tells which slices it has, and stays.
const STAY: &str = "env | grep SLICEGATE_MIG; echo here; exec sleep 10000";
/// Where the operator is.
const SYSTEM: &str = "slicegate-system";

/// A pod that runs with one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pod: String,
    pod_uid: String,
    /// The container's id.
    container: String,
    restarts: i32,
    started: String,
    gpu: String,
    start: u8,
    /// UUID of the MIG device.
    uuid: String,
    /// The device that the kubelet has given it, by the kubelet's checkpoint; the journal says that it stands for the slice.
    token: String,
}

impl World<'_> {
    /// Starts a Job with one slice, and waits until it runs and has it.
    async fn start(&self, namespace: &str, name: &str, profile: &str) -> Result<Holder> {
        self.submit(namespace, name, profile, STAY).await?;
        self.holder(namespace, name).await
    }

    /// Creates a Job that runs a script with one slice.
    async fn submit(&self, namespace: &str, name: &str, profile: &str, script: &str) -> Result<Job> {
        self.create(&job(namespace, name, &[container("main", script, &[(profile, 1)])])).await
    }

    /// The same, but its pod's container starts again when it fails.
    async fn start_lasting(&self, namespace: &str, name: &str, profile: &str) -> Result<Holder> {
        let mut job = job(namespace, name, &[container("main", STAY, &[(profile, 1)])]);
        job["spec"]["template"]["spec"]["restartPolicy"] = Value::from("OnFailure");
        self.create::<Job>(&job).await?;
        self.holder(namespace, name).await
    }

    /// Who runs for a Job, once somebody does.
    async fn holder(&self, namespace: &str, owner: &str) -> Result<Holder> {
        self.next_holder(namespace, owner, None).await
    }

    /// Who runs for a Job after `before`: the next container of the same pod, or of another.
    async fn next_holder(&self, namespace: &str, owner: &str, before: Option<&Holder>) -> Result<Holder> {
        self.until(&format!("{owner} runs with its slice"), || async {
            let pods = self.list::<Pod>(namespace).await?;
            let of_owner = pods.iter().filter(|p| p.owner_references().iter().any(|r| r.name == owner));
            for pod in of_owner.filter(|p| p.metadata.deletion_timestamp.is_none()) {
                if let Some(holder) = self.held(pod).await?
                    && before.is_none_or(|before| before.container != holder.container)
                {
                    return Ok(Some(holder));
                }
            }
            Ok(None)
        })
        .await
    }

    /// What a pod has, if its container runs and everybody says the same of its slice.
    async fn held(&self, pod: &Pod) -> Result<Option<Holder>> {
        let Some(status) = container_status(pod) else { return Ok(None) };
        let running = status.state.as_ref().and_then(|state| state.running.as_ref()?.started_at.clone());
        let Some(started) = running else { return Ok(None) };
        let (name, uid) = (pod.name_any(), pod.uid().context("uid")?);
        let full = format!("{}/{name}", pod.namespace().context("namespace")?);
        let of_pod = |s: &SliceStatus| s.pod.as_ref() == Some(&full) && s.state == SliceState::InUse;
        let slices = self.slices().await?;
        let Some(slice) = slices.into_iter().find(of_pod) else { return Ok(None) };
        let Some(token) = self.token(&uid)? else { return Ok(None) };
        let bound = &self.journal()?["bindings"][&token];
        if bound["gpu"] != slice.gpu.as_str() || bound["start"] != slice.start {
            return Ok(None);
        }
        Ok(Some(Holder {
            pod: name,
            pod_uid: uid,
            container: status.container_id.clone().context("container id")?,
            restarts: status.restart_count,
            started: started.0.to_string(),
            gpu: slice.gpu,
            start: slice.start,
            uuid: slice.uuid.context("UUID of a slice in use")?,
            token,
        }))
    }

    /// Checks that nothing has happened to a pod, its slice and its device.
    async fn is_undisturbed(&self, namespace: &str, before: &Holder) -> Result<()> {
        let now = self
            .until(&format!("{} has its slice", before.pod), || async {
                self.held(&self.api::<Pod>(namespace).get(&before.pod).await?).await
            })
            .await?;
        ensure!(now == *before, "something happened to a pod:\nbefore {before:?}\nnow    {now:?}");
        let exists = self.real.gpu_state()?.instances()?.iter().any(|i| i.mig_uuid() == Some(&before.uuid));
        ensure!(exists, "NVML does not have the slice of {before:?}");
        Ok(())
    }

    /// Checks that a container was told its slice as it is now.
    async fn knows_its_slice(&self, namespace: &str, holder: &Holder) -> Result<()> {
        let is_it = |line: &str| line.starts_with("SLICEGATE_MIG_") && line.ends_with(&holder.uuid);
        self.says(namespace, &holder.pod, "main", is_it).await?;
        Ok(())
    }

    /// Deletes a Job and waits until its pods are gone.
    async fn end(&self, namespace: &str, name: &str) -> Result<()> {
        self.api::<Job>(namespace).delete(name, &DeleteParams::background()).await?;
        self.until(&format!("the pods of {name} are gone"), || async {
            let pods = self.list::<Pod>(namespace).await?;
            Ok(!pods.iter().any(|pod| pod.owner_references().iter().any(|r| r.name == name)))
        })
        .await
    }

    /// The slice at a holder's place, as the MIGNode shows it.
    async fn slice_of(&self, holder: &Holder) -> Result<Option<SliceStatus>> {
        let at = |s: &SliceStatus| s.gpu == holder.gpu && s.start == holder.start;
        Ok(self.slices().await?.into_iter().find(at))
    }

    /// Waits until all that is left is what these pods hold and idle slices: in claims, MIGNode, NVML and journal alike.
    async fn nothing_leaks(&self, holders: &[&Holder]) -> Result<()> {
        self.until("nothing is left but what is in use", || async {
            let node = self.mig_node().await?;
            let slices = node.status.unwrap_or_default().slices;
            let in_use = slices.iter().filter(|s| s.state == SliceState::InUse).count();
            let quiet = slices.iter().all(|s| matches!(s.state, SliceState::InUse | SliceState::Idle))
                && in_use == holders.len();
            let mut shown: Vec<_> = slices.iter().map(|s| s.uuid.clone()).collect();
            let mut real: Vec<_> =
                self.real.gpu_state()?.instances()?.iter().map(|i| i.mig_uuid().map(str::to_owned)).collect();
            shown.sort();
            real.sort();
            let journal = self.journal()?;
            let instances = journal["instances"].as_array().map_or(0, Vec::len);
            let bindings = journal["bindings"].as_object().map_or(0, serde_json::Map::len);
            Ok(quiet
                && node.spec.claims.len() == holders.len()
                && node.spec.holds.is_empty()
                && shown == real
                && instances == shown.len()
                && bindings == holders.len())
        })
        .await
    }

    /// The node journal.
    fn journal(&self) -> Result<Value> {
        let file = self.real.node.path("/var/lib/slicegate/journal.json")?;
        Ok(serde_json::from_slice(&std::fs::read(file)?)?)
    }

    /// The only device that a pod has, by the kubelet's checkpoint.
    fn token(&self, pod_uid: &str) -> Result<Option<String>> {
        let file = self.real.node.path("/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint")?;
        let checkpoint: Value = serde_json::from_slice(&std::fs::read(file)?)?;
        let entries = checkpoint["Data"]["PodDeviceEntries"].as_array().cloned().unwrap_or_default();
        let of_pod = entries.iter().find(|entry| entry["PodUID"] == pod_uid);
        let ids = of_pod.and_then(|entry| entry["DeviceIDs"].as_object());
        let mut ids =
            ids.into_iter().flat_map(|by_numa| by_numa.values()).filter_map(Value::as_array).flatten();
        Ok(ids.next().and_then(Value::as_str).map(str::to_owned))
    }

    /// Kills a container as the kernel does when it has to; the kubelet sees to the rest.
    async fn kill_container(&self, id: &str) -> Result<()> {
        let ctr = self.real.rig.repo().programs().join("ctr");
        let id = id.strip_prefix("containerd://").context("a container of containerd's")?;
        let done = self
            .real
            .node
            .command(ctr)?
            .args(["--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"])
            .args(["tasks", "kill", "--signal", "SIGKILL", id])
            .output()
            .await?;
        ensure!(done.status.success(), "kill {id}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// The agent's container and how often it has started again.
    async fn agent(&self) -> Result<(String, i32)> {
        let pod = self.api::<Pod>(SYSTEM).get(&self.real.agent_pod().await?).await?;
        let status = container_status(&pod).context("the agent's container")?;
        Ok((status.container_id.clone().context("container id")?, status.restart_count))
    }

    /// What the agent has written since it started last.
    async fn agent_log(&self) -> Result<String> {
        let log = self.real.node.logs(SYSTEM, &self.real.agent_pod().await?, "agent")?;
        let from = log.rfind("NVML is there").context("the agent has not started")?;
        Ok(log[from..].to_owned())
    }

    /// Whether a Job waits to be admitted.
    async fn is_waiting(&self, namespace: &str, name: &str) -> Result<bool> {
        let job = self.api::<Job>(namespace).get(name).await?;
        Ok(job.spec.and_then(|spec| spec.suspend) == Some(true))
    }
}

fn container_status(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}
