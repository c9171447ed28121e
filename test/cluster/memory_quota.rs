//! Kueue counts the memory of slices instead of the slices: one quota for all profiles.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use slicegate::cli::kueue_config::{Strategy, transformations};
use slicegate_core::profile::ProfileName;
use slicegate_rig::Options;
use slicegate_rig::operator::GpuNode;

use crate::queues;
use crate::shared::Group;
use crate::watched::Watched;

const MEMORY: &str = "slicegate.dev/gpu-memory";

pub static CLUSTER: Group = Group::with(&[], configured);

/// The transformations of an A30's profiles, as `kubectl slices kueue-config --strategy replace` prints them.
fn wanted() -> Value {
    let profiles = ["1g.6gb", "1g.6gb+me", "2g.12gb", "2g.12gb+me", "4g.24gb"];
    let profiles = profiles.map(|name| name.parse::<ProfileName>().unwrap());
    json!({"resources": {"transformations": transformations(&profiles, Strategy::Replace)}})
}

fn configured(options: Options) -> Options {
    options.kueue(&wanted())
}

/// A ClusterQueue that lends so many GiB, and no profile by name.
pub fn cluster_queue(place: &Watched, gib: u32) -> Value {
    let mut queue = queues::cluster_queue(place.name(), &[place.name()], &[(place.name(), &[])]);
    let group = &mut queue["spec"]["resourceGroups"][0];
    group["coveredResources"].as_array_mut().unwrap().push(json!(MEMORY));
    let quotas = group["flavors"][0]["resources"].as_array_mut().unwrap();
    quotas.push(json!({"name": MEMORY, "nominalQuota": gib}));
    queue
}

/// Runs `kubectl slices kueue-config`; what it prints, or what it says is wrong.
pub async fn kueue_config(place: &Watched, args: &[&str]) -> Result<Result<String, String>> {
    let program: PathBuf = place.operator.kubectl_slices();
    let output = tokio::process::Command::new(program)
        .env("KUBECONFIG", place.rig().kubeconfig())
        .arg("kueue-config")
        .args(args)
        .output()
        .await?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

/// Kueue's Configuration as its manifests keep it.
async fn publish(place: &Watched, config: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kueue-manager-config", "namespace": place.name()},
        "data": {"controller_manager_config.yaml": config},
    });
    place.rig().apply_objects(vec![object]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_quota_of_gpu_memory_is_shared_by_all_profiles() -> Result<()> {
    let nodes = ["memory-a", "memory-b"].map(|name| GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30"));
    let place = Watched::enter(&CLUSTER, "memory", nodes.into()).await?;
    let mut objects = queues::check("memory", &json!({}));
    objects.push(cluster_queue(&place, 24));
    place.rig().apply_objects(objects).await?;
    place.submit(&place.job("half", 1, &[("2g.12gb", 1)])).await?;
    place.submit(&place.job("quarters", 2, &[("1g.6gb", 1)])).await?;
    place.until_running("half", 1).await?;
    place.until_running("quarters", 2).await?;
    // The GPUs have room for another four; the quota has not.
    place.submit(&place.job("more", 1, &[("1g.6gb", 1)])).await?;
    place
        .until("it waits for quota of GPU memory", || async {
            let workload = place.workload_of(place.name(), "more").await?;
            let status = workload.and_then(|w| w.status).unwrap_or_default();
            let reserved = status.conditions.iter().find(|c| c.type_ == "QuotaReserved");
            Ok(reserved.is_some_and(|c| c.status == "False" && c.message.contains(MEMORY)))
        })
        .await?;
    place.kubectl("delete job half --wait=false").await?;
    place.until_running("more", 1).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn kueues_configuration_is_printed_and_the_live_one_compared_with_it() -> Result<()> {
    let place =
        Watched::enter(&CLUSTER, "compared", vec![GpuNode::new("compared", "A30-24GB", 1, "NVIDIA-A30")])
            .await?;
    place.rig().apply_objects(vec![cluster_queue(&place, 24)]).await?;
    let map = format!("{}/kueue-manager-config", place.name());
    let check = ["--check", "--strategy", "replace", "--config-map", &map];
    let printed = kueue_config(&place, &["--strategy", "replace"]).await?.map_err(anyhow::Error::msg)?;
    let parsed: Value = serde_saphyr::from_str(&printed).context("what is printed is YAML")?;
    for profile in ["1g.6gb", "4g.24gb"] {
        let input = format!("nvidia.com/mig-{profile}");
        let of = |t: &&Value| t["input"] == json!(input);
        let all =
            |value: &Value| value["resources"]["transformations"].as_array().cloned().unwrap_or_default();
        let (printed, wanted) = (all(&parsed), all(&wanted()));
        assert_eq!(printed.iter().find(of), wanted.iter().find(of), "{input}");
        assert!(printed.iter().any(|t| t["input"] == json!(input)));
    }
    let missing = kueue_config(&place, &check).await?.unwrap_err();
    assert!(missing.contains("does not exist"), "{missing}");
    publish(&place, &printed.replacen('6', "7", 1)).await?;
    let wrong = kueue_config(&place, &check).await?.unwrap_err();
    assert!(wrong.contains("nvidia.com/mig-"), "{wrong}");
    publish(&place, "resources: [").await?;
    let unreadable = kueue_config(&place, &check).await?.unwrap_err();
    assert!(unreadable.contains("cannot be read"), "{unreadable}");
    // The queue that is installed by default lends profiles only.
    publish(&place, &printed).await?;
    let uncovered = kueue_config(&place, &check).await?.unwrap_err();
    assert!(
        uncovered.contains("ClusterQueue mig lends MIG profiles and not slicegate.dev/gpu-memory"),
        "{uncovered}"
    );
    assert!(!uncovered.contains("nvidia.com/mig-"), "{uncovered}");
    // What pods of such a namespace are given must be lent or ignored.
    place.kubectl("label namespace compared instaslice.redhat.com/enable-mutation=true").await?;
    let mut strict = parsed.clone();
    let inputs = strict["resources"]["transformations"].as_array_mut().context("transformations")?;
    inputs.retain(|t| !t["input"].as_str().unwrap().starts_with("instaslice"));
    publish(&place, &serde_saphyr::to_string(&strict)?).await?;
    let barred = kueue_config(&place, &check).await?.unwrap_err();
    let given = "namespace compared gives its pods instaslice.redhat.com/accelerator-memory-quota, which ClusterQueue compared \
                 neither lends nor ignores";
    assert!(barred.contains(given), "{barred}");
    publish(&place, &printed).await?;
    let ignored = kueue_config(&place, &check).await?.unwrap_err();
    assert!(!ignored.contains("gives its pods"), "{ignored}");
    let mut lenient = parsed.clone();
    lenient["resources"]["quotaCheckStrategy"] = json!("IgnoreUndeclared");
    publish(&place, &serde_saphyr::to_string(&lenient)?).await?;
    let well = kueue_config(&place, &check).await?.map_err(anyhow::Error::msg)?;
    assert!(well.contains("profiles are counted in slicegate.dev/gpu-memory"), "{well}");
    place.leave().await
}
