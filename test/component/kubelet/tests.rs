use std::sync::atomic::Ordering;

use slicegate_kubelet_api::checkpoint;
use slicegate_kubelet_api::device_plugin::{NumaNode, TopologyInfo};
use slicegate_kubelet_api::pod_resources::{
    self, AllocatableResourcesRequest, ListPodResourcesRequest, PodResourcesListerClient,
};
use slicegate_kubelet_api::socket;
use slicegate_kubelet_api::tonic::Code;
use slicegate_kubelet_api::tonic::transport::Channel;

use super::*;

const R: &str = "nvidia.com/mig-1g.10gb";
const BOTH: &[(&str, bool)] = &[("a", true), ("b", true)];

async fn node(devices: &[(&str, bool)]) -> (tempfile::TempDir, FakeKubelet, Plugin) {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::start(folder.path()).await;
    let plugin = Plugin::start(&kubelet.device_plugins(), "p.sock", R, devices).await;
    plugin.register(&kubelet.device_plugins()).await.unwrap();
    kubelet.until("the first list", |k| k.devices(R).len() == devices.len()).await;
    (folder, kubelet, plugin)
}

fn client(kubelet: &FakeKubelet) -> PodResourcesListerClient<Channel> {
    pod_resources::client(socket::channel(&kubelet.pod_resources(), Duration::from_secs(5)).unwrap())
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

async fn listed(kubelet: &FakeKubelet) -> Vec<(String, Vec<String>)> {
    let answer = client(kubelet).list(ListPodResourcesRequest {}).await.unwrap().into_inner();
    let devices = |pod: &pod_resources::PodResources| {
        pod.containers.iter().flat_map(|c| &c.devices).flat_map(|d| d.device_ids.clone()).collect()
    };
    answer.pod_resources.iter().map(|pod| (pod.name.clone(), devices(pod))).collect()
}

async fn allocatable(kubelet: &FakeKubelet) -> Vec<String> {
    let answer = client(kubelet).get_allocatable_resources(AllocatableResourcesRequest {}).await.unwrap();
    answer.into_inner().devices.into_iter().flat_map(|devices| devices.device_ids).collect()
}

fn checkpointed(kubelet: &FakeKubelet) -> Vec<String> {
    let found = checkpoint::read(&kubelet.device_plugins()).unwrap();
    found.entries.into_iter().map(|entry| entry.pod_uid).collect()
}

#[tokio::test]
async fn a_pod_holds_what_the_plugin_was_asked_for_and_everyone_can_see_it() {
    let (_folder, kubelet, _plugin) = node(BOTH).await;
    let given = kubelet.admit(&Pod::new("n", "one").app("c", R, 1)).await.unwrap();
    assert_eq!(given[0].devices, ["a"]);
    assert_eq!(given[0].response.cdi_devices[0].name, "test/class=a");
    assert_eq!(listed(&kubelet).await, [("one".to_owned(), vec!["a".to_owned()])]);
    assert_eq!(checkpointed(&kubelet), ["one"]);
    assert_eq!(kubelet.record().allocations, [(R.to_owned(), vec!["a".to_owned()])]);
    assert_eq!(allocatable(&kubelet).await, ["a", "b"]);
    assert_eq!(kubelet.registered(), ids(&[R]));
}

#[tokio::test]
async fn refusals_read_as_the_kubelets_and_leave_nothing_allocated() {
    let (_folder, kubelet, plugin) = node(&[("a", true), ("b", false)]).await;
    let error = kubelet.admit(&Pod::new("n", "two").app("c", R, 2)).await.unwrap_err();
    assert_eq!(error, format!("requested number of devices unavailable for {R}. Requested: 2, Available: 1"));
    plugin.refuse("not now");
    let error = kubelet.admit(&Pod::new("n", "one").app("c", R, 1)).await.unwrap_err();
    assert!(error.contains("not now"), "{error}");
    assert!(kubelet.allocated(R).is_empty());
    plugin.list(&[("a", false), ("b", false)]);
    kubelet.until("no device to be healthy", |k| k.healthy(R).is_empty()).await;
    let error = kubelet.admit(&Pod::new("n", "three").app("c", R, 1)).await.unwrap_err();
    assert_eq!(error, format!("no healthy devices present; cannot allocate unhealthy devices {R}"));
    assert_eq!(listed(&kubelet).await, []);
}

#[tokio::test]
async fn a_pod_that_ended_holds_its_devices_until_somebody_asks_and_is_in_the_checkpoint_until_the_next_write()
 {
    let (_folder, kubelet, plugin) = node(BOTH).await;
    let pod = Pod::new("n", "one").app("c", R, 2);
    kubelet.admit(&pod).await.unwrap();
    kubelet.end(&pod);
    assert_eq!(kubelet.allocated(R), ids(&["a", "b"]));
    assert_eq!(listed(&kubelet).await, []);
    assert!(kubelet.allocated(R).is_empty());
    assert_eq!(checkpointed(&kubelet), ["one"]);
    plugin.list(&[("a", true), ("b", false)]);
    kubelet.until("the list", |k| k.healthy(R) == ids(&["a"])).await;
    kubelet.until("the checkpoint to be written", |k| checkpointed(k).is_empty()).await;
}

#[tokio::test]
async fn a_kubelet_that_restarts_knows_what_it_gave_and_has_no_healthy_device_until_the_plugin_registers() {
    let (_folder, mut kubelet, plugin) = node(BOTH).await;
    let pod = Pod::new("n", "one").app("c", R, 1);
    let before = kubelet.admit(&pod).await.unwrap();
    let folder = kubelet.device_plugins();
    kubelet.restart().await;
    assert!(!folder.join("p.sock").exists(), "the sockets of plugins are deleted");
    assert!(kubelet.socket().exists(), "the kubelet's own is made anew");
    assert_eq!(kubelet.capacity(), BTreeMap::from([(R.to_owned(), (0, 0))]));
    assert!(kubelet.registered().is_empty());
    assert_eq!(kubelet.allocated(R), ids(&["a"]));
    let error = kubelet.admit(&pod).await.unwrap_err();
    assert_eq!(error, format!("no healthy devices present; cannot allocate unhealthy devices {R}"));
    assert!(plugin.register(&folder).await.is_err(), "nobody serves on the deleted socket");
    plugin.serve(&folder).await;
    plugin.register(&folder).await.unwrap();
    kubelet.until("the devices to be back", |k| k.healthy(R) == ids(&["a", "b"])).await;
    assert_eq!(kubelet.admit(&pod).await.unwrap(), before);
    kubelet.forget_stopped();
    assert_eq!(kubelet.capacity(), BTreeMap::from([(R.to_owned(), (2, 2))]));
}

#[tokio::test]
async fn a_container_that_starts_again_gets_the_old_answer_without_a_call() {
    let (_folder, kubelet, plugin) = node(BOTH).await;
    let pod = Pod::new("n", "one").app("c", R, 1);
    let before = kubelet.admit(&pod).await.unwrap();
    assert_eq!(kubelet.admit(&pod).await.unwrap(), before);
    assert_eq!(kubelet.record().allocations.len(), 1);
    plugin.list(&[("a", false), ("b", true)]);
    kubelet.until("the list", |k| k.healthy(R) == ids(&["b"])).await;
    let error = kubelet.admit(&pod).await.unwrap_err();
    assert!(error.starts_with("previously allocated devices are no longer healthy"), "{error}");
}

#[tokio::test]
async fn the_devices_of_init_containers_serve_again_and_are_not_listed() {
    let (_folder, kubelet, _plugin) = node(BOTH).await;
    kubelet.choose(Choice::Last);
    let pod = Pod::new("n", "one").with(Kind::Init, "init", R, 1).app("c", R, 1);
    let given = kubelet.admit(&pod).await.unwrap();
    assert_eq!((&given[0].devices, &given[1].devices), (&vec!["b".to_owned()], &vec!["b".to_owned()]));
    let sidecar = Pod::new("n", "two").with(Kind::Sidecar, "side", R, 1).app("c", R, 1);
    assert!(kubelet.admit(&sidecar).await.unwrap_err().contains("Requested: 1, Available: 0"));
    assert_eq!(listed(&kubelet).await, [("one".to_owned(), vec!["b".to_owned()])]);
    // Also what a refused pod was given before it was refused, until the next write.
    assert_eq!(checkpointed(&kubelet), ["one", "one", "two"]);
}

#[tokio::test]
async fn a_device_that_disappears_while_it_is_allocated_crashes_the_kubelet() {
    let (_folder, kubelet, plugin) = node(BOTH).await;
    kubelet.faults().allocate.hold();
    let admission = kubelet.begin(&Pod::new("n", "one").app("c", R, 1));
    kubelet.faults().allocate.holds(1).await;
    assert_eq!(kubelet.allocated(R), ids(&["a"]), "marked before the call");
    plugin.list(&[("b", true)]);
    kubelet.until("the list", |k| k.devices(R).len() == 1).await;
    kubelet.faults().allocate.release();
    assert!(admission.await.unwrap().unwrap_err().contains("crashed"));
    assert_eq!(kubelet.take_crashes().len(), 1);
    assert_eq!(kubelet.record().shrinkings(), [format!("{R}: a is no longer listed")]);
}

#[tokio::test]
async fn a_list_that_is_held_back_is_not_acknowledged() {
    let (_folder, kubelet, plugin) = node(BOTH).await;
    kubelet.faults().updates.hold();
    plugin.list(&[("a", true), ("b", false)]);
    kubelet.faults().updates.holds(1).await;
    assert_eq!(allocatable(&kubelet).await, ["a", "b"]);
    kubelet.faults().updates.release();
    kubelet.until("the list", |k| k.healthy(R) == ids(&["a"])).await;
    assert_eq!(allocatable(&kubelet).await, ["a"]);
    assert!(kubelet.record().shrinkings().is_empty());
}

#[tokio::test]
async fn an_answer_that_is_held_back_is_old_when_it_comes() {
    let (_folder, kubelet, _plugin) = node(BOTH).await;
    kubelet.faults().list.hold();
    let admits_meanwhile = async {
        kubelet.faults().list.holds(1).await;
        kubelet.admit(&Pod::new("n", "one").app("c", R, 1)).await.unwrap();
        kubelet.faults().list.release();
    };
    let (answer, ()) = tokio::join!(listed(&kubelet), admits_meanwhile);
    assert_eq!(answer, []);
    assert_eq!(listed(&kubelet).await.len(), 1);
}

#[tokio::test]
async fn pod_resources_can_refuse_be_missing_and_list_pods_that_ended() {
    let (_folder, mut kubelet, _plugin) = node(BOTH).await;
    kubelet.faults().exhaust(1);
    let refused = client(&kubelet).list(ListPodResourcesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let pod = Pod::new("n", "one").app("c", R, 1);
    kubelet.admit(&pod).await.unwrap();
    kubelet.end(&pod);
    kubelet.faults().lists_ended_pods.store(true, Ordering::SeqCst);
    assert_eq!(listed(&kubelet).await, [("one".to_owned(), Vec::new())]);
    kubelet.remove(&pod);
    assert_eq!(listed(&kubelet).await, []);
    kubelet.faults().no_pod_resources.store(true, Ordering::SeqCst);
    kubelet.restart().await;
    let missing = client(&kubelet).list(ListPodResourcesRequest {}).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unavailable);
}

#[tokio::test]
async fn beyond_the_burst_pod_resources_refuses() {
    let (_folder, kubelet, _plugin) = node(BOTH).await;
    let client = client(&kubelet);
    let asks = (0..50).map(|_| {
        let mut client = client.clone();
        async move { client.list(ListPodResourcesRequest {}).await }
    });
    let answers = futures::future::join_all(asks).await;
    let refused = answers.iter().filter(|answer| answer.is_err()).count();
    assert!((1..=40).contains(&refused), "{refused} of 50 were refused");
}

#[tokio::test]
async fn when_a_stream_breaks_no_device_is_healthy_and_the_next_registration_heals() {
    let (_folder, kubelet, plugin) = node(BOTH).await;
    kubelet.break_stream(R);
    kubelet.until("the plugin to be stopped", |k| k.registered().is_empty()).await;
    assert_eq!(kubelet.capacity()[R], (2, 0));
    plugin.register(&kubelet.device_plugins()).await.unwrap();
    kubelet.until("the devices to be back", |k| k.healthy(R).len() == 2).await;
    plugin.kill().await;
    kubelet.until("the plugin to be stopped", |k| k.capacity()[R] == (2, 0)).await;
}

#[tokio::test]
async fn the_end_of_a_plugin_disconnects_the_one_that_replaced_it() {
    let (_folder, kubelet, plugin) = node(BOTH).await;
    let folder = kubelet.device_plugins();
    let other = Plugin::start(&folder, "nvidia.sock", R, &[("x", true)]).await;
    other.register(&folder).await.unwrap();
    kubelet.until("the other's list", |k| k.healthy(R) == ids(&["x"])).await;
    plugin.list(BOTH);
    kubelet.until("the first one's list, still taken in", |k| k.healthy(R) == ids(&["a", "b"])).await;
    plugin.kill().await;
    kubelet.until("the other to be stopped", |k| k.registered().is_empty()).await;
}

#[tokio::test]
async fn a_choice_follows_its_strategy_and_the_plugins_preference_comes_first() {
    let devices: &[(&str, bool)] = &[("a", true), ("b", true), ("c", true), ("d", true)];
    let (_folder, kubelet, _plugin) = node(devices).await;
    kubelet.choose(Choice::Prefer(vec!["c".into()]));
    assert_eq!(kubelet.admit(&Pod::new("n", "one").app("c", R, 1)).await.unwrap()[0].devices, ["c"]);
    let order = |seed| {
        let mut choice = Choice::Random(seed);
        (0..8).map(|_| choice.order(&ids(&["a", "b", "c", "d"]))).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    let folder = kubelet.device_plugins();
    let prefers = Plugin::start(&folder, "q.sock", "nvidia.com/mig-2g.20gb", devices).await;
    prefers.prefer(&["d"]);
    prefers.register(&folder).await.unwrap();
    kubelet.until("its list", |k| !k.healthy("nvidia.com/mig-2g.20gb").is_empty()).await;
    let given = kubelet.admit(&Pod::new("n", "two").app("c", "nvidia.com/mig-2g.20gb", 2)).await.unwrap();
    assert_eq!(given[0].devices, ["c", "d"]);
}

#[tokio::test]
async fn a_device_whose_topology_names_no_node_is_not_shown_and_one_near_to_two_is_shown_twice() {
    let (_folder, kubelet, plugin) = node(BOTH).await;
    let near = |id, nodes: &[i64]| Device {
        topology: Some(TopologyInfo { nodes: nodes.iter().map(|&id| NumaNode { id }).collect() }),
        ..plugin::device(id, true)
    };
    plugin.list_devices(vec![near("a", &[]), near("b", &[0, 1])]);
    kubelet.until("the list", |k| k.devices(R).iter().all(|device| device.topology.is_some())).await;
    assert_eq!(allocatable(&kubelet).await, ["b", "b"]);
}

#[tokio::test]
async fn registrations_that_the_kubelet_would_not_take_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::start(folder.path()).await;
    let folder = kubelet.device_plugins();
    for resource in ["mig", "kubernetes.io/mig", "requests.nvidia.com/mig", "nvidia.com/1g.10gb+me"] {
        let plugin = Plugin::start(&folder, "p.sock", resource, BOTH).await;
        let refused = plugin.register(&folder).await.unwrap_err();
        assert!(refused.message().contains("is invalid"), "{refused}");
    }
    let plugin = Plugin::start(&folder, "p.sock", R, BOTH).await;
    std::fs::remove_file(folder.join("p.sock")).unwrap();
    let refused = plugin.register(&folder).await.unwrap_err();
    assert!(refused.message().contains("failed to dial device plugin"), "{refused}");
    assert_eq!(kubelet.record().registrations.len(), 5);
}
