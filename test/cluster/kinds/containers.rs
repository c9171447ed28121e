//! What one pod can ask for: several slices, of several profiles, in several containers.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};

use super::{KINDS, endless};
use crate::shared::{Place, calls, counted, one_a30};

fn container(name: &str, slices: u32) -> Value {
    json!({
        "name": name,
        "image": "example.com/none",
        "resources": {"requests": {"cpu": "100m"}, "limits": {"nvidia.com/mig-1g.6gb": slices}},
    })
}

/// A Job with one pod of this template.
fn one_pod(template: &Value) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}, "spec": {"template": template}})
}

/// Runs a pod and gives the profiles that it holds.
async fn profiles(here: &Place, template: &Value) -> Result<Vec<String>> {
    here.apply(one_pod(template)).await?;
    let held = here.until_held_by(1).await?;
    Ok(held.into_values().flatten().map(|slice| slice.profile).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_and_sidecars_of_a_pod_have_their_slices_together() -> Result<()> {
    let here = KINDS.enter("containers", vec![counted(one_a30("containers"))], &[]).await?;
    let mut pod = endless(&[]);
    let mut sidecar = container("sidecar", 1);
    sidecar["restartPolicy"] = json!("Always");
    pod["spec"]["containers"] = json!([container("a", 1), container("b", 1)]);
    // The init container runs beside the sidecar, before the others: two at that time.
    pod["spec"]["initContainers"] = json!([sidecar, container("prepare", 1)]);
    assert_eq!(profiles(&here, &pod).await?, ["1g.6gb"; 3]);
    assert_eq!(calls(&here, "containers")?, (3, 0));
    here.kubectl("delete job one").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_container_that_wants_more_than_the_others_decides_how_many() -> Result<()> {
    let here = KINDS.enter("init", vec![counted(one_a30("init"))], &[]).await?;
    let mut pod = endless(&[("1g.6gb", 1)]);
    pod["spec"]["initContainers"] = json!([container("prepare", 3)]);
    assert_eq!(profiles(&here, &pod).await?, ["1g.6gb"; 3]);
    assert_eq!(calls(&here, "init")?, (3, 0));
    here.kubectl("delete job one").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_ask_for_several_slices_of_one_profile() -> Result<()> {
    let here = KINDS.enter("quantity", vec![one_a30("quantity-1"), one_a30("quantity-2")], &[]).await?;
    // Three of four quarters each: no node has room for two of them.
    let job = crate::support::job("quantity", "wide", 2, &[("1g.6gb", 3)], "1000");
    here.submit(&job).await?;
    let held = here.until_held_by(2).await?;
    let nodes: Vec<BTreeSet<_>> =
        held.values().map(|slices| slices.iter().map(|slice| slice.node.as_str()).collect()).collect();
    assert!(held.values().all(|slices| slices.len() == 3), "{held:?}");
    assert!(nodes.iter().all(|nodes| nodes.len() == 1), "{held:?}");
    assert_ne!(nodes[0], nodes[1]);
    here.kubectl("delete job wide").await?;
    here.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_profiles_of_a_pod_are_on_one_node() -> Result<()> {
    let here = KINDS.enter("mixed", vec![one_a30("mixed-1"), one_a30("mixed-2")], &[]).await?;
    // A quarter in use on each: a half and a quarter still fit together, but on none twice.
    here.submit(&crate::support::job("mixed", "small", 2, &[("1g.6gb", 1)], "1000")).await?;
    here.until_held_by(2).await?;
    here.submit(&crate::support::job("mixed", "mixed", 1, &[("1g.6gb", 1), ("2g.12gb", 1)], "1000")).await?;
    let held = here.until_held_by(3).await?;
    let (_, mixed) = held.iter().find(|(pod, _)| pod.starts_with("mixed-")).unwrap();
    let profiles: Vec<_> = mixed.iter().map(|slice| slice.profile.as_str()).collect();
    let nodes: BTreeSet<_> = mixed.iter().map(|slice| slice.node.as_str()).collect();
    assert_eq!((profiles, nodes.len()), (vec!["1g.6gb", "2g.12gb"], 1), "{held:?}");
    here.kubectl("delete job small mixed").await?;
    here.leave().await
}
