//! What containers see of their slices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use serde_json::{Value, json};
use slicegate::agent::cdi;
use slicegate::api::mig_node::{SliceState, SliceStatus};
use slicegate_kubelet_api::checkpoint;

use crate::support::{World, container, job, job_of, on_the_node};

/// Tells what there is, one thing a line.
const LOOK: &str = "for device in /dev/nvidia* /dev/nvidia-caps/*; do test -f $device -o -c $device && echo device $device; done; \
                    env | grep -E '^(SLICEGATE|NVIDIA|CUDA)' | sed 's/^/variable /'; echo looked";
/// The same, and stays.
const LOOK_AND_STAY: &str = "for device in /dev/nvidia* /dev/nvidia-caps/*; do test -f $device -o -c $device && echo device $device; done; \
                             env | grep -E '^(SLICEGATE|NVIDIA|CUDA)' | sed 's/^/variable /'; echo looked; exec sleep 1000";

/// What a run of a container has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sight {
    devices: BTreeSet<String>,
    variables: BTreeMap<String, String>,
}

impl Sight {
    /// The MIG devices that its variables name.
    fn slices(&self) -> BTreeSet<String> {
        let named = self.variables.iter().filter(|(name, _)| name.starts_with("SLICEGATE_MIG_"));
        named.map(|(_, uuid)| uuid.clone()).collect()
    }
}

/// What the runs of a container have found, once there are that many.
async fn sights(
    world: &World<'_>,
    namespace: &str,
    pod: &str,
    container: &str,
    runs: usize,
) -> Result<Vec<Sight>> {
    world
        .until(&format!("{container} of {pod} has looked"), || async {
            let (mut found, mut sight) = (Vec::new(), Sight::default());
            for line in world.lines(namespace, pod, container)? {
                match line.split_once(' ') {
                    Some(("device", path)) => drop(sight.devices.insert(path.to_owned())),
                    Some(("variable", text)) => {
                        let (name, value) = text.split_once('=').context(line.clone())?;
                        sight.variables.insert(name.to_owned(), value.to_owned());
                    }
                    _ if line == "looked" => found.push(std::mem::take(&mut sight)),
                    _ => {}
                }
            }
            Ok(Some(found).filter(|found| found.len() == runs))
        })
        .await
}

async fn sight(world: &World<'_>, namespace: &str, pod: &str, container: &str) -> Result<Sight> {
    let mut found = sights(world, namespace, pod, container, 1).await?;
    found.pop().context("a sight")
}

/// What a container with exactly these slices finds: their variables, and no other device than theirs.
fn whole(world: &World<'_>, slices: &[SliceStatus]) -> Result<Sight> {
    let gpus: Vec<String> = world.real.gpu_state()?.read()?.gpus.into_iter().map(|gpu| gpu.uuid).collect();
    let mut devices: BTreeSet<String> =
        ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"].map(|name| format!("/dev/{name}")).into();
    let mut variables = BTreeMap::from([("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())]);
    for slice in slices {
        let gpu = u32::try_from(gpus.iter().position(|uuid| *uuid == slice.gpu).context("its GPU")?)?;
        let instance = slice.gpu_instance_id.context("an instance")?;
        devices.insert(format!("/dev/nvidia{gpu}"));
        for compute in [None, Some(slice.compute_instance_id.context("a compute instance")?)] {
            let minor = nvml_sim::host::capability_minor(gpu, instance, compute);
            devices.insert(format!("/dev/nvidia-caps/nvidia-cap{minor}"));
        }
        let uuid = slice.uuid.clone().context("a UUID")?;
        variables.insert(format!("SLICEGATE_MIG_{gpu}_{}", slice.start), uuid);
    }
    Ok(Sight { devices, variables })
}

/// The slices that a pod holds, once there are that many.
async fn slices_of(world: &World<'_>, namespace: &str, pod: &str, count: usize) -> Result<Vec<SliceStatus>> {
    let name = format!("{namespace}/{pod}");
    world
        .until(&format!("{pod} holds {count} slices"), || async {
            let all = world.slices().await?.into_iter();
            let its: Vec<_> = all.filter(|s| s.pod.as_ref() == Some(&name)).collect();
            let in_use = its.iter().all(|slice| slice.state == SliceState::InUse);
            Ok(Some(its).filter(|its| in_use && its.len() == count))
        })
        .await
}

/// Those of some slices that a container's variables name.
fn named(slices: &[SliceStatus], sight: &Sight) -> Vec<SliceStatus> {
    let uuids = sight.slices();
    slices
        .iter()
        .filter(|slice| slice.uuid.as_ref().is_some_and(|uuid| uuids.contains(uuid)))
        .cloned()
        .collect()
}

/// The devices of our CDI files on the node.
fn described(world: &World<'_>) -> Result<BTreeSet<String>> {
    let mut devices = BTreeSet::new();
    for entry in fs::read_dir(world.real.node.path("/run/cdi")?)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        devices
            .extend(name.strip_prefix(cdi::PREFIX).and_then(|n| n.strip_suffix(".json")).map(str::to_owned));
    }
    Ok(devices)
}

fn device_name(slice: &SliceStatus) -> Result<String> {
    let name = cdi::qualified(&slice.gpu.as_str().into(), &slice.profile.parse()?, slice.start);
    Ok(name.split_once('=').context(name.clone())?.1.to_owned())
}

#[test]
fn a_container_finds_its_slice() {
    on_the_node("finds-its-slice", async |world, namespace| {
        let main = container("main", LOOK_AND_STAY, &[("1g.10gb", 1)]);
        world.create::<Job>(&job(namespace, "one", &[main])).await?;
        let pod = world.pod_in(namespace, "one", "Running").await?.name_any();
        let found = sight(world, namespace, &pod, "main").await?;
        let slices = slices_of(world, namespace, &pod, 1).await?;
        ensure!(found == whole(world, &slices)?, "{found:?} of {slices:?}");
        world.clear(namespace).await
    });
}

#[test]
fn each_container_finds_its_own_slices_of_one_or_several_profiles_and_no_others() {
    on_the_node("finds-its-own", async |world, namespace| {
        let containers = [
            container("twice", LOOK_AND_STAY, &[("1g.10gb", 2)]),
            container("mixed", LOOK_AND_STAY, &[("1g.10gb", 1), ("2g.20gb", 1)]),
            container("large", LOOK_AND_STAY, &[("3g.40gb", 1)]),
            container("none", LOOK_AND_STAY, &[]),
        ];
        world.create::<Job>(&job(namespace, "several", &containers)).await?;
        let pod = world.pod_in(namespace, "several", "Running").await?.name_any();
        let slices = slices_of(world, namespace, &pod, 5).await?;
        let mut seen = BTreeSet::new();
        for (name, profiles) in [
            ("twice", &["1g.10gb", "1g.10gb"][..]),
            ("mixed", &["1g.10gb", "2g.20gb"]),
            ("large", &["3g.40gb"]),
        ] {
            let found = sight(world, namespace, &pod, name).await?;
            let its = named(&slices, &found);
            let mut its_profiles: Vec<&str> = its.iter().map(|slice| slice.profile.as_str()).collect();
            its_profiles.sort_unstable();
            ensure!(its_profiles == profiles, "{name} has {its:?}");
            ensure!(found == whole(world, &its)?, "{name} finds {found:?} and has {its:?}");
            ensure!(found.slices().iter().all(|uuid| seen.insert(uuid.clone())), "shared: {found:?}");
        }
        ensure!(seen.len() == 5, "{seen:?}");
        let nothing = sight(world, namespace, &pod, "none").await?;
        ensure!(nothing == Sight::default(), "a container without slices finds {nothing:?}");
        world.clear(namespace).await
    });
}

#[test]
fn init_containers_and_sidecars_find_slices_and_the_pod_claims_no_more_than_it_holds_at_once() {
    on_the_node("init-and-sidecar", async |world, namespace| {
        let mut sidecar = container("sidecar", LOOK_AND_STAY, &[("1g.10gb", 1)]);
        sidecar["restartPolicy"] = json!("Always");
        let prepare = container("prepare", LOOK, &[("1g.10gb", 1)]);
        let spec = json!({
            "initContainers": [prepare, sidecar],
            "containers": [container("main", LOOK_AND_STAY, &[("1g.10gb", 1)])],
        });
        world.create::<Job>(&job_of(namespace, "staged", &spec)).await?;
        let pod = world.pod_in(namespace, "staged", "Running").await?.name_any();
        let slices = slices_of(world, namespace, &pod, 2).await?;
        let claims: Vec<u32> = world.mig_node().await?.spec.claims.iter().map(|claim| claim.slices).collect();
        ensure!(claims == [2], "{claims:?}");
        let mut found = Vec::new();
        for name in ["prepare", "sidecar", "main"] {
            let sight = sight(world, namespace, &pod, name).await?;
            ensure!(sight == whole(world, &named(&slices, &sight))?, "{name} finds {sight:?} of {slices:?}");
            ensure!(sight.slices().len() == 1, "{name} finds {sight:?}");
            found.push(sight);
        }
        ensure!(found[1] != found[2], "sidecar and main share {found:?}");
        world.clear(namespace).await
    });
}

#[test]
fn a_container_that_restarts_in_its_pod_finds_the_same_slices_by_the_same_names() {
    on_the_node("restarts", async |world, namespace| {
        let script = format!("{LOOK}; test -e /kept/again && exec sleep 1000; touch /kept/again; exit 1");
        let mut main = container("main", &script, &[("1g.10gb", 2)]);
        main["volumeMounts"] = json!([{"name": "kept", "mountPath": "/kept"}]);
        let spec = json!({
            "restartPolicy": "OnFailure",
            "containers": [main, container("other", LOOK_AND_STAY, &[("1g.10gb", 1)])],
            "volumes": [{"name": "kept", "emptyDir": {}}],
        });
        world.create::<Job>(&job_of(namespace, "again", &spec)).await?;
        let pod = world.pod_in(namespace, "again", "Running").await?.name_any();
        let runs = sights(world, namespace, &pod, "main", 2).await?;
        let slices = slices_of(world, namespace, &pod, 3).await?;
        let its = named(&slices, &runs[0]);
        ensure!(its.len() == 2 && runs[0] == whole(world, &its)?, "{runs:?} of {slices:?}");
        ensure!(runs[1] == runs[0], "{runs:?}");
        world.clear(namespace).await
    });
}

#[test]
fn cdi_specs_are_there_with_their_slices_and_go_with_them() {
    on_the_node("cdi-specs", async |world, namespace| {
        ensure!(described(world)?.is_empty(), "there is no slice yet");
        world.slice_policy(&json!({"idleSliceRetentionSeconds": 0})).await?;
        let main = container("main", LOOK_AND_STAY, &[("1g.10gb", 1), ("1g.10gb.me", 1)]);
        world.create::<Job>(&job(namespace, "one", &[main])).await?;
        let pod = world.pod_in(namespace, "one", "Running").await?.name_any();
        let slices = slices_of(world, namespace, &pod, 2).await?;
        let mut expected = slices.iter().map(device_name).collect::<Result<BTreeSet<String>>>()?;
        expected.insert("driver".to_owned());
        ensure!(described(world)? == expected, "{:?} instead of {expected:?}", described(world)?);
        let name = device_name(&slices[0])?;
        let file = world.real.node.path(format!("/run/cdi/{}{name}.json", cdi::PREFIX))?;
        let spec: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
        ensure!(spec["kind"] == cdi::KIND && spec["devices"][0]["name"] == name.as_str(), "{spec}");
        world.clear(namespace).await?;
        world.until("the slices are gone", || async { Ok(world.slices().await?.is_empty()) }).await?;
        ensure!(world.real.gpu_state()?.instances()?.is_empty(), "NVML has slices left");
        world.until("their specs are gone", || async { Ok(described(world)?.is_empty()) }).await
    });
}

#[test]
fn the_strategy_envvar_names_the_slices_in_a_variable() {
    on_the_node("envvar", async |world, namespace| {
        world.real.agent_args(&["--device-list-strategy=envvar"]).await?;
        let main = container("main", LOOK_AND_STAY, &[("1g.10gb", 2)]);
        world.create::<Job>(&job(namespace, "one", &[main])).await?;
        let pod = world.pod_in(namespace, "one", "Running").await?.name_any();
        let found = sight(world, namespace, &pod, "main").await?;
        let slices = slices_of(world, namespace, &pod, 2).await?;
        let uuids: BTreeSet<&str> = slices.iter().filter_map(|slice| slice.uuid.as_deref()).collect();
        let visible = &found.variables["NVIDIA_VISIBLE_DEVICES"];
        ensure!(uuids == visible.split(',').collect() && uuids.len() == 2, "{found:?} of {slices:?}");
        ensure!(found.variables.len() == 1, "{found:?}");
        // Device nodes are NVIDIA's runtime's to bring, which is not on this node.
        ensure!(found.devices.is_empty(), "{found:?}");
        world.clear(namespace).await
    });
}

/// containerd, 2.4 among others, reads these annotations beside CRI's own field (`internal/cri/opts/spec_linux.go`, WithCDI).
#[test]
fn the_strategy_cdi_annotations_names_the_slices_in_annotations_of_the_container() {
    on_the_node("cdi-annotations", async |world, namespace| {
        world.real.agent_args(&["--device-list-strategy=cdi-annotations"]).await?;
        let main = container("main", LOOK_AND_STAY, &[("1g.10gb", 1), ("2g.20gb", 1)]);
        world.create::<Job>(&job(namespace, "one", &[main])).await?;
        let pod = world.pod_in(namespace, "one", "Running").await?.name_any();
        let found = sight(world, namespace, &pod, "main").await?;
        let slices = slices_of(world, namespace, &pod, 2).await?;
        ensure!(found == whole(world, &slices)?, "{found:?} of {slices:?}");
        let given = checkpoint::read(&world.real.node.path("/var/lib/kubelet/device-plugins")?)?.entries;
        let annotations: BTreeMap<&str, &str> = given
            .iter()
            .flat_map(|entry| &entry.response.annotations)
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        ensure!(annotations.len() == 2, "a key for each profile: {annotations:?}");
        ensure!(
            annotations.keys().all(|key| key.starts_with("cdi.k8s.io/slicegate.dev-mig_")),
            "{annotations:?}"
        );
        ensure!(given.iter().all(|entry| entry.response.cdi_devices.is_empty()), "{given:?}");
        world.clear(namespace).await
    });
}
