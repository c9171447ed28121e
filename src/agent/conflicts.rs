//! Who else has a hand in the node's GPUs, and what to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use slicegate_core::id::GpuUuid;

/// What NVIDIA's device plugin calls its sockets (`k8s-device-plugin`, `internal/plugin/server.go`).
const NVIDIA_PLUGIN: &str = "nvidia-";
/// Set by whoever wants mig-manager to cut the node's GPUs.
const MIG_CONFIG: &str = "nvidia.com/mig.config";

/// A conflict: a reason for the condition, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// One word, CamelCase.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// What may betray a conflict.
#[derive(Debug, Default)]
pub struct Signs<'a> {
    /// Sockets of other plugins that somebody serves.
    pub plugins: BTreeSet<String>,
    /// Devices of our resources that are not ours.
    pub devices: BTreeSet<String>,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Whole GPUs that the Node offers.
    pub whole_gpus: u32,
    /// Pods that have whole GPUs.
    pub whole_gpu_pods: BTreeSet<String>,
    /// What somebody did to the geometry, by GPU.
    pub meddled: BTreeMap<GpuUuid, String>,
    /// The controller's version.
    pub controller: Option<&'a str>,
    /// This agent's version.
    pub agent: &'a str,
}

/// The conflicts that the signs betray, the gravest first.
pub fn conflicts(signs: &Signs<'_>) -> Vec<Conflict> {
    let mut found = Vec::new();
    let mut add = |reason, message| found.push(Conflict { reason, message });
    if let Some(sign) = signs.plugins.first().or(signs.devices.first()) {
        add(
            "OtherDevicePlugin",
            format!(
                "Another device plugin offers MIG slices on this node ({sign}), so the kubelet may give pods slices that are not \
                 theirs. Take NVIDIA's plugin off the node: label it nvidia.com/gpu.deploy.device-plugin=false, or install the \
                 GPU Operator with devicePlugin.enabled=false."
            ),
        );
    }
    if let Some(config) = signs.labels.get(MIG_CONFIG) {
        add(
            "MIGManager",
            format!(
                "The node is labelled {MIG_CONFIG}={config}, by which NVIDIA's mig-manager cuts its GPUs and destroys slices of \
                 Slicegate's. Remove the label and label the node nvidia.com/gpu.deploy.mig-manager=false, or install the GPU \
                 Operator with migManager.enabled=false."
            ),
        );
    }
    if let Some(message) = signs.meddled.values().next() {
        add("GeometryChanged", format!("{message}."));
    }
    if let Some(pod) = signs.whole_gpu_pods.first() {
        add(
            "WholeGPUs",
            format!(
                "Pod {pod} has a whole GPU (nvidia.com/gpu) of this node, which Slicegate may be cutting. Move it to a node \
                 without Slicegate's agent."
            ),
        );
    } else if signs.whole_gpus > 0 {
        add(
            "WholeGPUs",
            format!(
                "The node offers {} whole GPUs (nvidia.com/gpu), which pods could take while Slicegate cuts them. Take NVIDIA's \
                 plugin off the node: label it nvidia.com/gpu.deploy.device-plugin=false.",
                signs.whole_gpus
            ),
        );
    }
    if let Some(controller) = signs.controller.filter(|version| !work_together(version, signs.agent)) {
        add(
            "VersionSkew",
            format!(
                "The controller is of version {controller}, the agent of {}. One version apart they work together; finish the \
                 update of the Deployment slicegate-controller or the DaemonSet slicegate-agent.",
                signs.agent
            ),
        );
    }
    found
}

/// Whether two versions are at most one minor version apart, as they are in the course of every update.
fn work_together(one: &str, other: &str) -> bool {
    let numbers = |version: &str| -> Option<(u32, u32)> {
        let (major, rest) = version.split_once('.')?;
        Some((major.parse().ok()?, rest.split('.').next()?.parse().ok()?))
    };
    match (numbers(one), numbers(other)) {
        (Some(one), Some(other)) => one.0 == other.0 && one.1.abs_diff(other.1) <= 1,
        _ => one == other,
    }
}

/// The sockets of NVIDIA's plugin in the kubelet's folder that somebody serves. Blocks, shortly.
pub fn other_plugins(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    let theirs = sockets.filter(|entry| entry.file_name().to_string_lossy().starts_with(NVIDIA_PLUGIN));
    let served = theirs.filter(|entry| UnixStream::connect(entry.path()).is_ok());
    served.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn reasons(signs: &Signs<'_>) -> Vec<&'static str> {
        conflicts(signs).into_iter().map(|conflict| conflict.reason).collect()
    }

    #[test]
    fn a_node_of_our_own_has_no_conflict() {
        let signs = Signs { controller: Some("0.1.0"), agent: "0.1.0", ..Signs::default() };
        assert_eq!(conflicts(&signs), []);
    }

    #[test]
    fn only_versions_that_are_further_apart_than_an_update_goes_are_a_conflict() {
        for (one, other, together) in [
            ("0.1.0", "0.1.7", true),
            ("0.1.9", "0.2.0", true),
            ("0.3.0-rc.1", "0.2.0", true),
            ("0.1.0", "0.3.0", false),
            ("1.0.0", "0.9.0", false),
            ("nightly", "nightly", true),
            ("nightly", "0.1.0", false),
        ] {
            assert_eq!(work_together(one, other), together, "{one} and {other}");
            assert_eq!(work_together(other, one), together, "{other} and {one}");
            let signs = Signs { controller: Some(one), agent: other, ..Signs::default() };
            assert_eq!(reasons(&signs).is_empty(), together);
        }
    }

    #[test]
    fn every_sign_is_told_with_what_to_do() {
        let signs = Signs {
            plugins: BTreeSet::from(["nvidia-mig-1g.10gb.sock".to_owned()]),
            devices: BTreeSet::new(),
            labels: BTreeMap::from([("nvidia.com/mig.config".to_owned(), "all-1g.10gb".to_owned())]),
            whole_gpus: 2,
            whole_gpu_pods: BTreeSet::new(),
            meddled: BTreeMap::from([("GPU-1".into(), "2 of them are gone".to_owned())]),
            controller: Some("0.3.0"),
            agent: "0.1.0",
        };
        let all = ["OtherDevicePlugin", "MIGManager", "GeometryChanged", "WholeGPUs", "VersionSkew"];
        assert_eq!(reasons(&signs), all);
        let told: String = conflicts(&signs).into_iter().map(|conflict| conflict.message).collect();
        for word in [
            "nvidia-mig-1g.10gb.sock",
            "nvidia.com/gpu.deploy.device-plugin=false",
            "migManager.enabled=false",
            "all-1g.10gb",
            "2 of them are gone",
            "2 whole GPUs",
            "0.3.0",
        ] {
            assert!(told.contains(word), "{word}: {told}");
        }
    }

    #[test]
    fn a_pod_with_a_whole_gpu_is_named() {
        let whole_gpu_pods = BTreeSet::from(["team/train".to_owned()]);
        let signs = Signs { whole_gpus: 1, whole_gpu_pods, ..Signs::default() };
        assert!(conflicts(&signs)[0].message.contains("team/train"));
    }

    #[test]
    fn only_sockets_that_somebody_serves_count() {
        let folder = tempfile::tempdir().unwrap();
        let _served = UnixListener::bind(folder.path().join("nvidia-gpu.sock")).unwrap();
        let _ours = UnixListener::bind(folder.path().join("slicegate-1g.10gb.sock")).unwrap();
        drop(UnixListener::bind(folder.path().join("nvidia-mig-1g.5gb.sock")).unwrap());
        fs::write(folder.path().join("nvidia-x"), "").unwrap();
        assert_eq!(other_plugins(folder.path()), ["nvidia-gpu.sock".to_owned()].into());
        assert_eq!(other_plugins(&folder.path().join("missing")), BTreeSet::new());
    }
}
