//! What containers see of their slices.

use anyhow::{Context, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use slicegate::api::mig_node::SliceState;

use crate::support::{container, job, on_the_node};

/// Tells what there is and stays.
const LOOK: &str = "ls /dev/nvidia* /dev/nvidia-caps/* | tr '\\n' ' '; echo; env | grep -E 'SLICEGATE_MIG|NVIDIA' | sort | tr '\\n' ' '; echo; echo looked; exec sleep 1000";

#[test]
fn a_container_finds_its_slice() {
    on_the_node("finds-its-slice", async |world, namespace| {
        world.create::<Job>(&job(namespace, "one", &[container("main", LOOK, &[("1g.10gb", 1)])])).await?;
        let pod = world.pod_in(namespace, "one", "Running").await?;
        world.says(namespace, &pod.name_any(), "main", |line| line == "looked").await?;
        let slice = world
            .until("the slice is the pod's", || async {
                let name = format!("{namespace}/{}", pod.name_any());
                Ok(world.slices().await?.into_iter().find(|s| s.pod.as_ref() == Some(&name)))
            })
            .await?;
        ensure!(slice.state == SliceState::InUse, "{slice:?}");
        let uuid = slice.uuid.context("a UUID")?;
        let log = world.real.node.logs(namespace, &pod.name_any(), "main")?;
        ensure!(log.contains(&uuid), "{uuid}: {log}");
        let gpu = if log.contains("SLICEGATE_MIG_0_") { "/dev/nvidia0 " } else { "/dev/nvidia1 " };
        for node in [gpu, "/dev/nvidiactl", "/dev/nvidia-caps/nvidia-cap"] {
            ensure!(log.contains(node), "{node}: {log}");
        }
        world.clear(namespace).await
    });
}
