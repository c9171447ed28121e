//! What kubelet, containerd and its network plugins are told.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cgroup;
use super::holder::Running;
use crate::image::PAUSE;

/// Where distributions keep the CNI plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The folder of the CNI plugins, or what to do when there is none.
pub fn plugins() -> Result<PathBuf> {
    PLUGINS
        .iter()
        .map(PathBuf::from)
        .find(|folder| ["bridge", "host-local", "loopback"].iter().all(|it| folder.join(it).is_file()))
        .with_context(|| format!("no CNI plugins in {}: run hack/prerequisites node", PLUGINS.join(" or ")))
}

/// containerd's configuration. `programs` is searched for its shim first.
pub fn containerd(plugins: &Path) -> String {
    format!(
        "version = 3\n\
         root = '/var/lib/containerd'\n\
         state = '/run/containerd'\n\
         [grpc]\n\
         address = '/run/containerd/containerd.sock'\n\
         [plugins.'io.containerd.cri.v1.runtime']\n\
         # Without CAP_SYS_RESOURCE containers cannot be protected better than containerd itself is.\n\
         restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\n\
         bin_dirs = ['{}']\n\
         conf_dir = '/etc/cni/net.d'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
         sandbox = '{PAUSE}'\n",
        plugins.display()
    )
}

/// The network of the pods: a bridge in the node, addresses from the node's range, no translation.
pub fn network(running: &Running) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "slicegate",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": running.pods}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

/// The kubelet's configuration: its defaults, the status loop's ten seconds among them, but for what a node beside others on
/// one machine needs.
pub fn kubelet(running: &Running, ca: &Path) -> Result<Value> {
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "healthzBindAddress": running.address,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", running.cgroup),
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "resolvConf": "",
        "makeIPTablesUtilChains": false,
        // The disk is the machine's: what else is on it is no reason to evict anybody.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    });
    if cgroup::is_v1()? {
        config["failCgroupV1"] = json!(false);
    }
    Ok(config)
}
