//! Namespaces whose quota counts GPU memory: what pods are given, what a ResourceQuota makes of it, and what Kueue does.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Event, Node, Pod, PodSpec, ResourceQuota};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};
use slicegate::api::convert::pod::{amount, requests};
use slicegate::api::gpu_memory::{UNITS, Unit, added, units};
use slicegate::api::kueue::{CheckState, ClusterQueue, Workload};
use slicegate::api::names::{GPU_MEMORY, GPU_MEMORY_QUOTA_LABEL, INSTASLICE_LABEL, INSTASLICE_MEMORY};
use slicegate_core::simulate::random::Random;
use slicegate_rig::operator::GpuNode;

use crate::memory_quota::{self, cluster_queue};
use crate::shared::{Group, Place, one_a30, phase};
use crate::watched::Watched;
use crate::{queues, support};

/// As Kueue is without any configuration of ours.
static CLUSTER: Group = Group::new(&[]);

const OURS: (&str, &str) = (GPU_MEMORY_QUOTA_LABEL, "enabled");
const INSTASLICE: (&str, &str) = (INSTASLICE_LABEL, "true");

fn asking(name: &str, limits: &Value) -> Value {
    json!({"name": name, "image": "example.com/none", "resources": {"limits": limits}})
}

fn slices(profile: &str, count: u32) -> Value {
    json!({format!("nvidia.com/mig-{profile}"): count})
}

/// Creates a pod in a test's namespace, in no queue, or only asks what it would be; its spec, or why it is refused.
async fn create(place: &Place, pod: &Value, dry_run: bool) -> Result<PodSpec, String> {
    let mut pod = pod.clone();
    pod["metadata"]["generateName"] = json!("pod-");
    let pod: Pod = serde_json::from_value(pod).map_err(|error| error.to_string())?;
    let parameters = PostParams { dry_run, ..PostParams::default() };
    let created = place.api::<Pod>(&place.namespace).create(&parameters, &pod).await;
    created.map_err(|error| error.to_string()).and_then(|pod| pod.spec.ok_or_else(String::new))
}

/// The same of a pod with these containers.
async fn given(place: &Place, containers: &[Value]) -> Result<PodSpec, String> {
    create(place, &json!({"spec": {"containers": containers}}), true).await
}

/// Labels the test's namespace, and waits until that is in force.
async fn count_memory(place: &Place, (key, value): (&str, &str)) -> Result<()> {
    place.kubectl(&format!("label namespace {} {key}={value}", place.namespace)).await?;
    let wanted = units(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
    place
        .until("pods are given GPU memory", || async {
            let spec = given(place, &[asking("a", &slices("1g.6gb", 1))]).await;
            Ok(spec.is_ok_and(|spec| {
                memory(&spec, wanted)["a"].iter().flatten().flatten().count() == 2 * wanted.len()
            }))
        })
        .await
}

/// Limit and request of each unit, by container.
fn memory(spec: &PodSpec, units: &[Unit]) -> BTreeMap<String, Vec<[Option<i64>; 2]>> {
    let of = |list: Option<&BTreeMap<String, Quantity>>, unit: &Unit| {
        amount(unit.resource, list?.get(unit.resource)?)
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let lists = containers.map(|container| {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|r| r.limits.as_ref());
        let requests = resources.and_then(|r| r.requests.as_ref());
        let both = units.iter().map(|unit| [of(limits, unit), of(requests, unit)]);
        (container.name.clone(), both.collect())
    });
    lists.collect()
}

/// A ResourceQuota in the test's namespace.
fn quota(place: &Place, resource: &str, hard: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus", "namespace": place.namespace},
        "spec": {"hard": {format!("requests.{resource}"): hard}},
    })
}

/// Waits until so much of that quota is used.
async fn until_used(place: &Place, resource: &str, used: i64) -> Result<()> {
    let key = format!("requests.{resource}");
    place
        .until(&format!("{used} of {key} are used"), || async {
            let quota = place.api::<ResourceQuota>(&place.namespace).get("gpus").await?;
            let shown = quota.status.and_then(|status| status.used).unwrap_or_default();
            Ok(shown.get(&key).and_then(|quantity| amount(resource, quantity)) == Some(used))
        })
        .await
}

async fn shown(place: &Place, node: &str) -> Result<[Option<i64>; 4]> {
    let status = Api::<Node>::all(place.client.clone()).get(node).await?.status.context("a status")?;
    let [capacity, allocatable] = [status.capacity, status.allocatable].map(Option::unwrap_or_default);
    let of = |list: &BTreeMap<String, Quantity>, unit: Unit| amount(unit.resource, list.get(unit.resource)?);
    let [ours, theirs] = UNITS;
    Ok([of(&capacity, ours), of(&allocatable, ours), of(&capacity, theirs), of(&allocatable, theirs)])
}

/// What Kueue says why workloads have no quota. Of several of the same shape it says it of one only.
async fn lacking(place: &Place) -> Result<Vec<String>> {
    let workloads = place.list::<Workload>(&place.namespace).await?;
    let conditions = workloads.into_iter().filter_map(|w| w.status).flat_map(|status| status.conditions);
    let waits = conditions.filter(|c| c.type_ == "QuotaReserved" && c.status == "False");
    Ok(waits.map(|condition| condition.message).collect())
}

async fn until_pods_run(place: &Place, count: usize) -> Result<()> {
    place
        .until(&format!("{count} pods run"), || async {
            Ok(place.staying().await?.iter().filter(|pod| phase(pod) == "Running").count() == count)
        })
        .await
}

/// A pod for `Place::apply`, which puts it into the queue.
fn pod(name: &str, limits: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [asking("main", limits)]},
    })
}

fn deployment(name: &str, replicas: u32, limits: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [asking("main", limits)]},
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_a_deployment_and_a_pod_share_one_resource_quota_and_one_cluster_queue_of_gpu_memory()
-> Result<()> {
    let nodes = ["counted-a", "counted-b"].map(|name| GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30"));
    let place = Watched::enter(&memory_quota::CLUSTER, "counted", nodes.into()).await?;
    let mut objects = queues::check("counted", &json!({}));
    // Just enough: what pods ask for by themselves must not count beside what their profiles are transformed to.
    objects.push(cluster_queue(&place, 30));
    objects.push(quota(&place, GPU_MEMORY, "30"));
    place.rig().apply_objects(objects).await?;
    count_memory(&place, OURS).await?;
    place.submit(&place.job("batch", 2, &[("1g.6gb", 1)])).await?;
    place.apply(deployment("served", 1, &slices("2g.12gb", 1))).await?;
    place.apply(pod("bare", &slices("1g.6gb", 1))).await?;
    until_pods_run(&place, 4).await?;
    until_used(&place, GPU_MEMORY, 30).await?;
    place
        .until("Kueue counts each once", || async {
            let queue: ClusterQueue = Api::all(place.client.clone()).get("counted").await?;
            let reserved = queue.status.map(|status| status.flavors_reservation).unwrap_or_default();
            let resources = reserved.iter().flat_map(|flavor| &flavor.resources);
            Ok(resources.into_iter().any(|resource| resource.name == GPU_MEMORY && resource.total.0 == "30"))
        })
        .await?;
    let refused = create(&place, &pod("more", &slices("1g.6gb", 1)), false).await.unwrap_err();
    assert!(
        refused.contains("exceeded quota: gpus, requested: requests.slicegate.dev/gpu-memory=6"),
        "{refused}"
    );
    place.kubectl("delete deployment served --wait=false").await?;
    until_used(&place, GPU_MEMORY, 18).await?;
    place.apply(pod("more", &slices("2g.12gb.me", 1))).await?;
    until_pods_run(&place, 4).await?;
    until_used(&place, GPU_MEMORY, 30).await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_pods_the_quota_would_refuse_waits_until_they_fit() -> Result<()> {
    let nodes = ["patient-a", "patient-b"].map(|name| GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30"));
    let place = Watched::enter(&memory_quota::CLUSTER, "patient", nodes.into()).await?;
    let mut objects = queues::check("patient", &json!({}));
    objects.push(cluster_queue(&place, 48));
    objects.push(quota(&place, GPU_MEMORY, "13"));
    place.rig().apply_objects(objects).await?;
    count_memory(&place, OURS).await?;
    place.submit(&place.job("first", 1, &[("2g.12gb", 1)])).await?;
    place.until_running("first", 1).await?;
    place.submit(&place.job("second", 2, &[("1g.6gb", 1)])).await?;
    place
        .until("the second is told which quota it waits for", || async {
            let told = place.told("second").await?;
            let why = |message: &str| message.contains(GPU_MEMORY) && message.contains("gpus");
            Ok(told.is_some_and(|(state, message)| state == CheckState::Pending && why(&message)))
        })
        .await?;
    place.kubectl("delete job first --wait=false").await?;
    place.until_running("second", 2).await?;
    until_used(&place, GPU_MEMORY, 12).await?;
    let events = place.list::<Event>("patient").await?;
    let refused: Vec<_> =
        events.iter().filter(|event| event.reason.as_deref() == Some("FailedCreate")).collect();
    assert!(refused.is_empty(), "{refused:?}");
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_of_instaslices_means_what_it_meant() -> Result<()> {
    let place = Watched::enter(&memory_quota::CLUSTER, "instaslice", vec![one_a30("instaslice")]).await?;
    let mut objects = queues::check("instaslice", &json!({}));
    objects.push(cluster_queue(&place, 24));
    objects.push(quota(&place, INSTASLICE_MEMORY, "17Gi"));
    place.rig().apply_objects(objects).await?;
    count_memory(&place, INSTASLICE).await?;
    place.apply(pod("first", &slices("2g.12gb", 1))).await?;
    until_pods_run(&place, 1).await?;
    until_used(&place, INSTASLICE_MEMORY, 12 << 30).await?;
    let refused = create(&place, &pod("second", &slices("1g.6gb", 1)), false).await.unwrap_err();
    assert!(
        refused.contains("requested: requests.instaslice.redhat.com/accelerator-memory-quota=6Gi"),
        "{refused}"
    );
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn kueue_admits_what_asks_for_gpu_memory_only_where_that_is_lent() -> Result<()> {
    let place = CLUSTER.enter("lent", vec![one_a30("lent")], &[]).await?;
    count_memory(&place, OURS).await?;
    // Its template asks for none.
    place.apply(support::job("lent", "batch", 1, &[("1g.6gb", 1)], "1000")).await?;
    place.apply(deployment("served", 1, &slices("1g.6gb", 1))).await?;
    place.apply(pod("bare", &slices("1g.6gb", 1))).await?;
    place
        .until("pods wait for GPU memory", || async {
            let why = format!("resource {GPU_MEMORY} unavailable in ClusterQueue");
            Ok(lacking(&place).await?.iter().any(|said| said.contains(&why)))
        })
        .await?;
    until_pods_run(&place, 1).await?;
    let group = "/spec/resourceGroups/0";
    let lend = json!([
        {"op": "add", "path": format!("{group}/coveredResources/-"), "value": GPU_MEMORY},
        {"op": "add", "path": format!("{group}/flavors/0/resources/-"), "value": {"name": GPU_MEMORY, "nominalQuota": 12}},
    ]);
    let patch = Patch::Json::<()>(serde_json::from_value(lend)?);
    queues::object(&place.client, "ClusterQueue", None)
        .patch("lent", &PatchParams::default(), &patch)
        .await?;
    until_pods_run(&place, 3).await?;
    place.abandon().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_shows_the_memory_of_its_gpus_again_when_its_kubelet_has_zeroed_it() -> Result<()> {
    let place =
        CLUSTER.enter("zeroed", vec![GpuNode::new("zeroed", "A30-24GB", 2, "NVIDIA-A30")], &[]).await?;
    let full = [Some(48), Some(48), Some(48 << 30), Some(48 << 30)];
    let until_full =
        || place.until("the node shows its memory", || async { Ok(shown(&place, "zeroed").await? == full) });
    until_full().await?;
    // As a kubelet does that registers anew and has lost its checkpoint (`kubelet_node_status.go`, reconcileExtendedResource).
    let zero = json!({GPU_MEMORY: "0", INSTASLICE_MEMORY: "0", "nvidia.com/mig-1g.6gb": "0"});
    let zero = Patch::Merge(json!({"status": {"capacity": zero, "allocatable": zero}}));
    let nodes = Api::<Node>::all(place.client.clone());
    nodes.patch_status("zeroed", &PatchParams::default(), &zero).await?;
    until_full().await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_way_round_the_memory_of_ones_profiles() -> Result<()> {
    let place = CLUSTER.enter("round", vec![], &[]).await?;
    let own = |mut limits: Value, gib: u32| {
        limits[GPU_MEMORY] = json!(gib);
        limits
    };
    // Where memory is not counted, nothing is added, and nobody takes what comes with others' slices.
    let ten = given(&place, &[asking("a", &slices("1g.10gb", 1))]).await.unwrap();
    assert_eq!(memory(&ten, &UNITS)["a"], [[None; 2]; 2]);
    given(&place, &[asking("a", &slices("big", 1))]).await.unwrap();
    given(&place, &[asking("a", &own(slices("1g.10gb", 1), 10))]).await.unwrap();
    for (limits, profiles) in [(own(json!({}), 1), 0), (own(slices("1g.10gb", 1), 11), 10)] {
        let refused = given(&place, &[asking("a", &limits)]).await.unwrap_err();
        assert!(
            refused.contains(&format!("than the {profiles} GiB of its MIG profiles: leave it out")),
            "{refused}"
        );
    }

    count_memory(&place, OURS).await?;
    let mut sidecar = asking("sidecar", &own(slices("1g.10gb.me", 1), 1));
    sidecar["restartPolicy"] = json!("Always");
    let spec = json!({
        "containers": [asking("few", &own(slices("1g.10gb", 2), 1)), asking("none", &own(json!({"cpu": 1}), 5))],
        "initContainers": [sidecar, asking("init", &json!({"nvidia.com/mig-7g.80gb": "1000m"}))],
    });
    let spec = create(&place, &json!({"spec": spec}), false).await.unwrap();
    let of = |gib: Option<i64>| vec![[gib; 2]];
    let wanted = [("few", Some(20)), ("none", None), ("sidecar", Some(10)), ("init", Some(80))];
    let wanted = wanted.map(|(name, gib)| (name.to_owned(), of(gib)));
    assert_eq!(memory(&spec, &UNITS[..1]), BTreeMap::from(wanted));
    for (limits, why) in [
        (slices("big", 1), "nvidia.com/mig-big does not say how much GPU memory it takes"),
        (slices("1g.10gb.you", 1), "does not say how much GPU memory it takes"),
        (json!({"nvidia.com/mig-1g.10gb": "1500m"}), "must be an integer"),
        (json!({"nvidia.com/mig-1g.10gb": "2G"}), "more than 1000000000 cannot be counted"),
        (
            json!({"nvidia.com/mig-1g.10gb": 1, INSTASLICE_MEMORY: "11Gi"}),
            "than the 10 GiB of its MIG profiles",
        ),
    ] {
        let refused = given(&place, &[asking("a", &limits)]).await.unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let whole_pod = json!({"spec": {"containers": [asking("a", &json!({}))], "resources": {"limits": slices("1g.10gb", 1)}}});
    let refused = create(&place, &whole_pod, true).await.unwrap_err();
    assert!(refused.contains("Unsupported value: \"nvidia.com/mig-1g.10gb\""), "{refused}");

    // Afterwards.
    let name = place.pods("round").await?.remove(0).metadata.name.context("a name")?;
    let pods = place.api::<Pod>("round");
    let fewer = json!([{"op": "replace", "path": "/spec/containers/0/resources", "value": {"limits": own(slices("1g.10gb", 2), 1)}}]);
    let fewer = Patch::Json::<()>(serde_json::from_value(fewer)?);
    let asks = json!({"spec": {"ephemeralContainers": [asking("late", &slices("1g.10gb", 1))]}});
    let parameters = PatchParams::default();
    let updated = pods.patch(&name, &parameters, &fewer).await.unwrap_err().to_string();
    assert!(updated.contains("pod updates may not change fields"), "{updated}");
    let resized = pods.patch_subresource("resize", &name, &parameters, &fewer).await.unwrap_err().to_string();
    assert!(resized.contains("only cpu and memory resources are mutable"), "{resized}");
    let late = Patch::Strategic(asks);
    let late = pods.patch_subresource("ephemeralcontainers", &name, &parameters, &late).await;
    let late = late.unwrap_err().to_string();
    assert!(late.contains("cannot be set for an Ephemeral Container"), "{late}");
    place.abandon().await
}

/// A policy that runs after ours and has the pods that want it ask for slices.
fn adds_slices() -> Vec<Value> {
    let name = json!({"name": "zz-late.example.com"});
    let add = "[JSONPatch{op: 'add', path: '/spec/containers/0/resources', value: \
        {'limits': {'nvidia.com/mig-3g.40gb': '1'}, 'requests': {'nvidia.com/mig-3g.40gb': '1'}}}]";
    let api = "admissionregistration.k8s.io/v1";
    vec![
        json!({
            "apiVersion": api, "kind": "MutatingAdmissionPolicy", "metadata": name,
            "spec": {
                "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
                ]},
                "matchConditions": [{
                    "name": "wants-it",
                    "expression": "has(object.metadata.annotations) && 'example.com/late' in object.metadata.annotations",
                }],
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": add}}],
            },
        }),
        json!({
            "apiVersion": api, "kind": "MutatingAdmissionPolicyBinding", "metadata": name,
            "spec": {"policyName": name["name"]},
        }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_add_later_is_counted_or_refused() -> Result<()> {
    let place = CLUSTER.enter("late", vec![], &[]).await?;
    count_memory(&place, OURS).await?;
    place.rig().apply_objects(adds_slices()).await?;
    let late = |limits: &Value| json!({"metadata": {"annotations": {"example.com/late": ""}}, "spec": {"containers": [asking("a", limits)]}});
    // Seen once, it is seen again.
    let spec = place
        .until("the other policy is in force", || async {
            let spec = create(&place, &late(&slices("1g.10gb", 1)), true).await.ok();
            let limits = |spec: &PodSpec| spec.containers[0].resources.as_ref()?.limits.clone();
            Ok(spec.filter(|spec| {
                limits(spec).is_some_and(|limits| limits.contains_key("nvidia.com/mig-3g.40gb"))
            }))
        })
        .await?;
    assert_eq!(memory(&spec, &UNITS[..1])["a"], [[Some(40); 2]]);
    // Of a pod that did not concern it before, our policy is told only if its turn comes after the other's.
    match create(&place, &late(&json!({"cpu": 1})), true).await {
        Ok(spec) => assert_eq!(memory(&spec, &UNITS[..1])["a"], [[Some(40); 2]]),
        Err(refused) => assert!(
            refused.contains("asks for MIG profiles of 40 GiB") || refused.contains("nothing has added it"),
            "{refused}"
        ),
    }
    place.abandon().await
}

/// A pod as anybody might write it, some of it wrong.
fn drawn(random: &mut Random, by_hand: &[Unit]) -> Value {
    const PROFILES: [&str; 11] = [
        "1g.6gb",
        "1g.6gb.me",
        "2g.12gb",
        "3g.40gb",
        "7g.141gb",
        "1g.24gb.me.all",
        "1g.24gb-me",
        "2g.48gb.gfx",
        "1g.10gb",
        "1g.10gb.you",
        "unknown-20",
    ];
    const COUNTS: [&str; 7] = ["1", "1", "2", "0", "3000m", "1k", "2e1"];
    let pick = |random: &mut Random, end: usize| random.below(u32::try_from(end).unwrap()) as usize;
    let mut container = |name: String| {
        let mut limits = Map::new();
        for _ in 0..random.below(4) {
            // What is no profile, seldom.
            let end = PROFILES.len() - usize::from(random.below(12) > 0) * 2;
            let profile = PROFILES[pick(random, end)];
            limits.insert(format!("nvidia.com/mig-{profile}"), json!(COUNTS[pick(random, COUNTS.len())]));
        }
        for unit in by_hand {
            if random.below(3) == 0 {
                limits.insert(unit.resource.to_owned(), json!(["0", "1", "6", "1Ki"][pick(random, 4)]));
            }
        }
        let mut container =
            json!({"name": name, "image": "example.com/none", "resources": {"limits": limits}});
        if random.below(3) == 0 {
            container.as_object_mut().unwrap().remove("resources");
        }
        (container, random.below(2) == 0)
    };
    let containers: Vec<Value> = (0..2).map(|i| container(format!("c{i}")).0).collect();
    let init = (0..3).map(|i| {
        let (mut container, sidecar) = container(format!("i{i}"));
        if sidecar {
            container["restartPolicy"] = json!("Always");
        }
        container
    });
    json!({"initContainers": init.collect::<Vec<_>>(), "containers": containers})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_gives_every_pod_what_the_function_says_and_a_quota_counts_just_that() -> Result<()> {
    for (name, label) in [("drawn", OURS), ("drawn-instaslice", INSTASLICE)] {
        let place = CLUSTER.enter(name, vec![], &[]).await?;
        let units = units(&BTreeMap::from([(label.0.to_owned(), label.1.to_owned())]));
        count_memory(&place, label).await?;
        place.rig().apply_objects(vec![quota(&place, GPU_MEMORY, "1G")]).await?;
        until_used(&place, GPU_MEMORY, 0).await?;
        let (mut random, mut refused, mut used) = (Random::new(7), 0, 0);
        for i in 0..150 {
            let spec = drawn(&mut random, units);
            let real = i % 5 == 0;
            let made = create(&place, &json!({"spec": spec}), !real).await;
            match added(&serde_json::from_value(spec.clone())?, units) {
                Ok(wanted) => {
                    let made = made.unwrap_or_else(|why| panic!("{spec} is refused: {why}"));
                    assert_eq!(memory(&made, units), memory(&wanted, units), "{spec}");
                    let taken = requests(&wanted).unwrap().get(GPU_MEMORY);
                    assert_eq!(requests(&made).unwrap().get(GPU_MEMORY), taken, "{spec}");
                    used += if real { taken } else { 0 };
                }
                Err(error) => {
                    let why = made.unwrap_err();
                    assert!(
                        why.contains("does not say how much GPU memory it takes"),
                        "{spec}: {error}, and not {why}"
                    );
                    refused += 1;
                }
            }
        }
        assert!((5..100).contains(&refused), "{refused} of 150 are refused");
        assert!(used > 0);
        until_used(&place, GPU_MEMORY, used).await?;
        place.abandon().await?;
    }
    Ok(())
}
