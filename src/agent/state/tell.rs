//! What the agent tells: the MIGNode's status, and Events about what has changed in it.

use std::time::{Duration, Instant};

use slicegate_core::geometry::Place;
use slicegate_core::time::Timestamp;
use tracing::warn;

use super::Agent;
use crate::agent::cdi::CdiDir;
use crate::agent::conflicts::{Signs, conflicts};
use crate::agent::handoff::Handoff;
use crate::agent::handoff::kubelet::WHOLE_GPU;
use crate::agent::mig_mode::MigModes;
use crate::agent::report::{self, Facts};
use crate::agent::write_status;
use crate::api::convert::now;
use crate::api::mig_node::MIGNodeStatus;

/// How long news that nobody waits for may wait for more. A pod that comes to its slice does so within this time after the
/// claim, so that both are told in one write.
const UNHURRIED: Duration = Duration::from_millis(500);

impl Agent {
    /// Writes the status, if it has changed. What nobody waits for may be kept back for a while; then it is said how long.
    pub(super) async fn report(&mut self, moment: Timestamp) -> kube::Result<Option<Duration>> {
        let views = self.gpus.views().iter();
        let foreign: Vec<Place> = views
            .flat_map(|(uuid, view)| view.instances.iter().filter(|i| !i.ours).map(move |i| (uuid, i)))
            .map(|(uuid, i)| Place::new(uuid, &i.slice))
            .collect();
        let damage = self.book.lock().journal.damage.clone();
        let mut problems = self.gpus.problems.clone();
        problems.extend(self.obstacle.clone());
        let unhealthy = self.gpus.unhealthy();
        let conflicts = conflicts(&self.signs());
        let mig_modes = self.mig_modes.as_ref().map(MigModes::notes).unwrap_or_default();
        let facts = Facts {
            gpus: self.gpus.list(),
            unhealthy: &unhealthy,
            mig_modes: &mig_modes,
            problems: &problems,
            damage: damage.as_deref(),
            kubelet: self.handoff.trouble(),
            notice: self.means.cdi.as_ref().and_then(CdiDir::notice),
            conflicts: &conflicts,
            reports: &self.reports,
            foreign: &foreign,
            boot_id: &self.means.boot_id,
            driver_version: self.means.driver.version(),
            generation: self.generation,
        };
        let status =
            report::status(moment, &facts, self.written.as_ref().unwrap_or(&MIGNodeStatus::default()));
        if self.written.as_ref() != Some(&status) {
            if !report::is_awaited(self.written.as_ref(), &status) {
                let since = self.kept_back.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                let left = UNHURRIED.saturating_sub(since.elapsed());
                if !left.is_zero() {
                    self.kept_back = Some((since, status));
                    return Ok(Some(left));
                }
            }
            write_status(&self.means.mig_nodes, &self.means.name, &status).await?;
            let before = self.written.replace(status).map(|status| status.conditions).unwrap_or_default();
            let after = self.written.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            self.means.announcer.announce(&before, after).await;
        }
        self.kept_back = None;
        self.reported = true;
        Ok(None)
    }

    /// What may betray that somebody else has a hand in the GPUs.
    pub(super) fn signs(&self) -> Signs<'_> {
        let seen = match &self.handoff {
            Handoff::Kubelet(kubelet) => kubelet.seen(),
            Handoff::StandIn(_) => None,
        };
        let allocatable = self.node.as_ref().and_then(|node| node.status.as_ref()?.allocatable.as_ref());
        let whole_gpus = allocatable.and_then(|all| all.get(WHOLE_GPU)?.0.parse().ok());
        Signs {
            plugins: self.plugins.clone(),
            devices: seen.map(|seen| seen.strange.clone()).unwrap_or_default(),
            labels: self.node.as_ref().and_then(|node| node.metadata.labels.clone()).unwrap_or_default(),
            whole_gpus: whole_gpus.unwrap_or(0),
            whole_gpu_pods: seen.map(|seen| seen.whole_gpu.clone()).unwrap_or_default(),
            meddled: self.gpus.meddled(),
            controller: self.controller_version.as_deref(),
            agent: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Says in the MIGNode that the agent ends: its slices stay, and nothing new is placed here until it is back.
    pub async fn say_goodbye(&mut self) {
        let kept_back = self.kept_back.take().map(|(_, status)| status);
        let Some(before) = self.written.take().and_then(|written| kept_back.or(Some(written))) else {
            return;
        };
        let status = report::stopped(now(), &before);
        if let Err(error) = write_status(&self.means.mig_nodes, &self.means.name, &status).await {
            warn!(%error, "cannot report that the agent ends");
        }
    }

    /// Who has or could get whole GPUs of the node.
    pub(super) fn whole_gpu_use(&self) -> Option<String> {
        let signs = self.signs();
        match (signs.whole_gpu_pods.first(), signs.whole_gpus) {
            (Some(pod), _) => Some(format!("pod {pod} has a whole GPU (nvidia.com/gpu) of this node")),
            (None, 0) => None,
            (None, count) => Some(format!("the node offers {count} whole GPUs (nvidia.com/gpu)")),
        }
    }
}
