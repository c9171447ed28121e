//! Turning MIG mode on where it is off, if the administrator lets the agent do that (`--enable-mig-mode`).
//!
//! A GPU without MIG mode may be in use as a whole, and some models are reset when the mode changes. So only a GPU on which
//! nobody computes is touched, on a node where no pod has a whole GPU or could get one. A GPU without MIG mode has no instances.
//! That the driver has taken the wish does not mean that the mode is on; what came of it is told in the MIGNode.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slicegate_core::id::GpuUuid;
use tracing::{info, warn};

use super::nvml::{Activation, Driver, GpuInfo, NvmlError};
use crate::api::mig_node::MigMode;

/// First pause before a GPU is looked at again; it doubles each time.
const RETRY: Duration = Duration::from_secs(1);
/// The longest such pause.
const MAX_RETRY: Duration = Duration::from_mins(10);

/// What came of asking for MIG mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not asked for: this process computes on the GPU.
    Busy(u32),
    /// The driver has taken the wish.
    Asked(Activation),
    /// It has not.
    Failed(NvmlError),
}

impl Outcome {
    /// Asks for MIG mode unless somebody computes on the GPU. Blocks; on some models for as long as a reset takes.
    pub fn of_asking(driver: &Driver, index: u32) -> Self {
        let asked = driver.processes(index).and_then(|processes| match processes.first() {
            Some(process) => Ok(Self::Busy(*process)),
            None => driver.enable_mig_mode(index).map(Self::Asked),
        });
        asked.unwrap_or_else(Self::Failed)
    }
}

/// The GPUs whose MIG mode is to be turned on.
#[derive(Debug, Default)]
pub struct MigModes {
    attempts: BTreeMap<GpuUuid, Attempt>,
}

#[derive(Debug)]
struct Attempt {
    /// What came of the last one, for people.
    note: Option<String>,
    count: u32,
    /// Before this nothing is tried; `None` while something is.
    next: Option<Instant>,
}

impl MigModes {
    /// The GPUs to ask for MIG mode now. `obstacle`: why that may be done to none of the node's.
    pub fn due(&mut self, gpus: &[GpuInfo], obstacle: Option<&str>) -> Vec<(GpuUuid, u32)> {
        let off: Vec<&GpuInfo> = gpus.iter().filter(|gpu| gpu.mig_mode == MigMode::Disabled).collect();
        self.attempts.retain(|uuid, attempt| attempt.next.is_none() || off.iter().any(|g| g.uuid == *uuid));
        let now = Instant::now();
        let mut due = Vec::new();
        for gpu in off {
            let fresh = || Attempt { note: None, count: 0, next: Some(now) };
            let attempt = self.attempts.entry(gpu.uuid.clone()).or_insert_with(fresh);
            if let Some(obstacle) = obstacle {
                attempt.note = Some(left_off(gpu.index, obstacle));
            } else if attempt.next.is_some_and(|next| next <= now) {
                attempt.next = None;
                due.push((gpu.uuid.clone(), gpu.index));
            }
        }
        due
    }

    /// Takes in what came of it.
    pub fn take_in(&mut self, gpu: &GpuUuid, index: u32, outcome: &Outcome) {
        let Some(attempt) = self.attempts.get_mut(gpu) else { return };
        let note = match outcome {
            Outcome::Asked(Activation::Active) => {
                info!(%gpu, "MIG mode turned on");
                None
            }
            Outcome::Asked(pending @ Activation::Pending { .. }) => Some(format!("{pending}.")),
            Outcome::Busy(process) => Some(left_off(
                index,
                &format!("process {process} computes on it; end it and MIG mode is turned on"),
            )),
            Outcome::Failed(error) => {
                Some(format!("MIG mode of GPU {index} cannot be turned on: {error}; it is tried again."))
            }
        };
        if let Some(note) = note.as_ref().filter(|_| attempt.note != note) {
            warn!(%gpu, note);
        }
        attempt.note = note;
        let pause = RETRY.saturating_mul(2_u32.saturating_pow(attempt.count)).min(MAX_RETRY);
        attempt.count = attempt.count.saturating_add(1);
        attempt.next = Some(Instant::now() + pause);
    }

    /// What came of it, by GPU, where MIG mode is not on.
    pub fn notes(&self) -> BTreeMap<GpuUuid, String> {
        self.attempts.iter().filter_map(|(gpu, attempt)| Some((gpu.clone(), attempt.note.clone()?))).collect()
    }
}

fn left_off(index: u32, why: &str) -> String {
    format!("MIG mode is off on GPU {index} and is left so: {why}.")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slicegate_core::geometry::Model;

    use super::*;

    fn gpu(index: u32, mig_mode: MigMode) -> GpuInfo {
        let model = Arc::new(Model { name: "NVIDIA A30".into(), units: 4, profiles: Vec::new() });
        GpuInfo { uuid: format!("GPU-{index}").as_str().into(), index, model, mig_mode }
    }

    #[test]
    fn only_gpus_without_mig_mode_are_asked_and_each_once_at_a_time() {
        let gpus = [gpu(0, MigMode::Enabled), gpu(1, MigMode::Disabled), gpu(2, MigMode::NotSupported)];
        let mut modes = MigModes::default();
        assert_eq!(modes.due(&gpus, None), [("GPU-1".into(), 1)]);
        assert_eq!(modes.due(&gpus, None), []);
        assert!(modes.notes().is_empty());
        modes.take_in(&"GPU-1".into(), 1, &Outcome::Asked(Activation::Active));
        assert_eq!(modes.due(&[gpu(1, MigMode::Enabled)], None), []);
        assert!(modes.attempts.is_empty(), "{modes:?}");
    }

    #[test]
    fn nothing_is_asked_while_pods_could_have_whole_gpus() {
        let gpus = [gpu(1, MigMode::Disabled)];
        let mut modes = MigModes::default();
        assert_eq!(modes.due(&gpus, Some("pod team/train has a whole GPU")), []);
        let note = "MIG mode is off on GPU 1 and is left so: pod team/train has a whole GPU.";
        assert_eq!(modes.notes().into_values().collect::<Vec<_>>(), [note]);
        assert_eq!(modes.due(&gpus, None).len(), 1);
    }

    #[test]
    fn what_does_not_help_is_told_and_tried_again_after_longer_and_longer_pauses() {
        let gpus = [gpu(1, MigMode::Disabled)];
        let mut modes = MigModes::default();
        let outcomes = [
            (Outcome::Busy(7), "process 7 computes on it"),
            (Outcome::Asked(Activation::Pending { index: 1, status: 16 }), "nvidia-smi -r -i 1"),
            (Outcome::Failed(NvmlError { call: "nvmlDeviceSetMigMode", code: 4 }), "NO_PERMISSION (4)"),
        ];
        let mut pauses = Vec::new();
        for (outcome, told) in outcomes {
            for attempt in modes.attempts.values_mut() {
                attempt.next = Some(Instant::now());
            }
            assert_eq!(modes.due(&gpus, None).len(), 1);
            modes.take_in(&"GPU-1".into(), 1, &outcome);
            assert!(modes.notes().into_values().all(|note| note.contains(told)), "{modes:?}");
            assert_eq!(modes.due(&gpus, None), []);
            let left = modes.attempts.values().filter_map(|a| a.next).map(|next| next - Instant::now());
            pauses.extend(left.map(|left| left.as_secs_f64().round()));
        }
        assert_eq!(pauses, [1.0, 2.0, 4.0]);
    }
}
