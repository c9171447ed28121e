//! The agent dies, or the node does.

use std::fs;

use serde_json::Value;
use slicegate::api::mig_node::SliceState::{Creating, Idle, InUse};

use super::rig::{P1, P2, R1, pod, starts};
use super::{Rig, on_node};
use crate::kubelet::{Choice, Kind, Pod};

/// A node with three slices, of which two pods have two, one of them in an init container.
async fn in_use(rig: &mut Rig) -> (Pod, Pod, Vec<u8>) {
    rig.agent().await;
    rig.want(&[(P1, 0), (P1, 2), (P1, 5)]);
    rig.until_state(&[0, 2, 5], Idle).await;
    rig.kubelet.choose(Choice::Last);
    let one = pod("one");
    let two = Pod::new("team", "two").with(Kind::Init, "prepare", R1, 1).app("main", "cpu", 1);
    let mut held = starts(&rig.kubelet.admit(&one).await.unwrap());
    held.extend(starts(&rig.kubelet.admit(&two).await.unwrap()));
    rig.until_state(&held, InUse).await;
    rig.until("the pod's name", |rig| rig.slice(held[0]).unwrap().pod.as_deref() == Some("team/one")).await;
    (one, two, held)
}

fn uuids(rig: &Rig) -> Vec<String> {
    rig.real().iter().map(|instance| instance.mig_uuid().unwrap().to_owned()).collect()
}

/// Everybody has what he had; the third slice can be given.
async fn as_before(rig: &Rig, pods: [&Pod; 2], held: &[u8]) {
    let free = [0, 2, 5].into_iter().find(|start| !held.contains(start)).unwrap();
    rig.kubelet.until("the devices to be healthy", |k| k.healthy(R1).len() == 3).await;
    rig.until_state(held, InUse).await;
    rig.until_state(&[free], Idle).await;
    rig.until("the node to show all", |rig| rig.api.resource(R1) == (7, 3)).await;
    rig.until("the pod's name", |rig| rig.slice(held[0]).unwrap().pod.as_deref() == Some("team/one")).await;
    assert_eq!(rig.run("third").await.1, free);
    for (pod, start) in pods.into_iter().zip(held) {
        assert_eq!(rig.kubelet.admit(pod).await.map(|given| starts(&given)), Ok(vec![*start]));
    }
    for pod in pods {
        rig.kubelet.end(pod);
    }
    rig.until_state(held, Idle).await;
    rig.check();
}

#[test]
fn an_agent_that_was_killed_finds_everything_as_it_was() {
    on_node(async |mut rig: Rig| {
        let (one, two, held) = in_use(&mut rig).await;
        let (bindings, before) = (rig.bindings(), uuids(&rig));
        for _ in 0..3 {
            rig.kill_agent().await;
            rig.agent().await;
            rig.until_state(&held, InUse).await;
            assert_eq!((rig.bindings(), uuids(&rig)), (bindings.clone(), before.clone()));
        }
        as_before(&rig, [&one, &two], &held).await;
    });
}

#[test]
fn pods_that_end_while_there_is_no_agent_are_missed_afterwards() {
    on_node(async |mut rig: Rig| {
        let (one, two, _) = in_use(&mut rig).await;
        rig.kill_agent().await;
        rig.kubelet.end(&one);
        rig.kubelet.end(&two);
        rig.agent().await;
        rig.until_state(&[0, 2, 5], Idle).await;
        assert_eq!(rig.bindings(), []);
        rig.check();
    });
}

#[test]
fn a_binding_of_which_the_kubelet_never_heard_is_struck_out() {
    on_node(async |mut rig: Rig| {
        let (one, two, held) = in_use(&mut rig).await;
        rig.kill_agent().await;
        // As if it had been killed between the journal and the answer: the kubelet forgets a choice whose Allocate failed.
        let free = [0, 2, 5].into_iter().find(|start| !held.contains(start)).unwrap();
        let mut journal: Value = serde_json::from_slice(&fs::read(rig.journal()).unwrap()).unwrap();
        let mut entry = journal["bindings"].as_object().unwrap().values().next().unwrap().clone();
        entry["start"] = free.into();
        journal["bindings"]["1g.10gb/0"] = entry;
        fs::write(rig.journal(), journal.to_string()).unwrap();
        assert_eq!(rig.bindings().len(), 3);
        rig.agent().await;
        rig.until_state(&[free], Idle).await;
        assert_eq!(rig.bindings().len(), 2);
        as_before(&rig, [&one, &two], &held).await;
    });
}

#[test]
fn without_a_journal_who_has_what_is_found_out() {
    on_node(async |mut rig: Rig| {
        let (one, two, held) = in_use(&mut rig).await;
        let before = (rig.bindings(), uuids(&rig));
        rig.kill_agent().await;
        fs::remove_file(rig.journal()).unwrap();
        rig.agent().await;
        rig.kubelet.until("the bindings to be found", |_| rig.bindings().len() == 2).await;
        assert_eq!((rig.bindings(), uuids(&rig)), before);
        rig.kill_agent().await;
        rig.agent().await;
        as_before(&rig, [&one, &two], &held).await;
    });
}

#[test]
fn without_a_journal_nobody_is_given_what_another_pod_has() {
    on_node(async |mut rig: Rig| {
        let (one, two, held) = in_use(&mut rig).await;
        rig.kill_agent().await;
        fs::remove_file(rig.journal()).unwrap();
        rig.kubelet.faults().list.hold();
        rig.start_agent();
        rig.kubelet.faults().list.holds(1).await;
        // Nor by the agent after that one, though it finds a journal.
        rig.kill_agent().await;
        rig.agent().await;
        rig.until("the kubelet's word to be missed", |rig| rig.ready().2.contains("PodResources List")).await;
        assert!(rig.kubelet.registered().is_empty(), "offered before it is known who has what");
        assert!(rig.kubelet.admit(&pod("early")).await.is_err());
        rig.kubelet.faults().list.release();
        as_before(&rig, [&one, &two], &held).await;
    });
}

#[test]
fn without_a_journal_uuids_in_the_environment_tell_who_has_what() {
    on_node(async |mut rig: Rig| {
        rig.words = vec!["--device-list-strategy=envvar".to_owned()];
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        let one = pod("one");
        rig.kubelet.admit(&one).await.unwrap();
        let before = rig.bindings();
        rig.kill_agent().await;
        fs::remove_file(rig.journal()).unwrap();
        rig.agent().await;
        rig.kubelet.until("the binding to be found", |_| rig.bindings() == before).await;
        rig.kubelet.end(&one);
        rig.until_state(&[2, 5], Idle).await;
        rig.check();
    });
}

#[test]
fn without_a_journal_a_pod_whose_slice_cannot_be_told_keeps_back_those_that_may_be_it() {
    on_node(async |mut rig: Rig| {
        rig.words = vec!["--device-list-strategy=envvar".to_owned()];
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5), (P2, 0)]);
        rig.until_state(&[0, 2, 5], Idle).await;
        let one = pod("one");
        rig.kubelet.admit(&one).await.unwrap();
        let before = rig.uuid_at(5);
        // The UUIDs that the pod was told lead nowhere any more.
        rig.sim().reset_gpu(&rig.gpus[0]).unwrap();
        rig.until("the slices to be made again", |rig| {
            rig.slice(5).is_some_and(|slice| slice.uuid.is_some_and(|uuid| uuid != before))
        })
        .await;
        rig.until_state(&[0], Idle).await;
        rig.kill_agent().await;
        fs::remove_file(rig.journal()).unwrap();
        rig.agent().await;
        rig.until("the reason", |rig| {
            [2, 5].iter().all(|start| {
                let message = rig.slice(*start).and_then(|slice| slice.message).unwrap_or_default();
                rig.state(*start) == Some(Creating) && message.contains("pod team/one has a slice of 1g.10gb")
            })
        })
        .await;
        rig.until_state(&[0], Idle).await;
        assert!(rig.kubelet.admit(&pod("two")).await.is_err());
        rig.kubelet.end(&one);
        rig.until_state(&[2, 5], Idle).await;
        rig.check();
    });
}

#[test]
fn an_agent_that_starts_while_the_kubelet_is_down_knows_who_has_what() {
    on_node(async |mut rig: Rig| {
        let (one, two, held) = in_use(&mut rig).await;
        let before = (rig.bindings(), uuids(&rig));
        rig.kill_agent().await;
        rig.kubelet.stop().await;
        rig.agent().await;
        rig.until("the kubelet to be missed", |rig| rig.ready().1 == "KubeletUnavailable").await;
        rig.until_state(&held, InUse).await;
        assert_eq!((rig.bindings(), uuids(&rig)), before);
        rig.kubelet.restart().await;
        as_before(&rig, [&one, &two], &held).await;
    });
}

#[test]
fn what_cannot_be_proven_ours_is_foreign_and_stays() {
    on_node(async |mut rig: Rig| {
        let (one, two, held) = in_use(&mut rig).await;
        rig.kill_agent().await;
        fs::write(rig.journal(), "{\"version\": 1, \"boot").unwrap();
        let theirs = rig.sim().create_instance(&rig.gpus[0], P1, Some(6)).unwrap();
        rig.want(&[(P1, 0), (P1, 2), (P1, 5), (P1, 6)]);
        rig.agent().await;
        rig.until("the foreign one to be told", |rig| rig.api.status().foreign.len() == 1).await;
        let foreign = rig.api.status().foreign.remove(0);
        assert_eq!((foreign.profile.as_str(), foreign.start), (P1, 6));
        assert_eq!(rig.ready().1, "JournalReset");
        assert_eq!(rig.api.resource(R1).0, 7);
        as_before(&rig, [&one, &two], &held).await;
        assert_eq!(rig.real_at(6).unwrap().mig_uuid(), theirs.mig_uuid());
        assert!(rig.slice(6).unwrap().message.is_some(), "{:?}", rig.slice(6));
    });
}

#[test]
fn after_a_reboot_slices_are_there_before_pods_are_and_pods_find_theirs_at_the_old_place() {
    on_node(async |mut rig: Rig| {
        let (one, two, held) = in_use(&mut rig).await;
        let before = uuids(&rig);
        rig.kill_agent().await;
        rig.kubelet.stop().await;
        rig.boot = "boot-2".to_owned();
        rig.simulate(|config| {
            config["bootID"] = "boot-2".into();
            config["latencyMs"] = serde_json::json!({"nvmlDeviceCreateGpuInstanceWithPlacement": 50});
        });
        assert!(rig.real().is_empty());
        fs::remove_dir_all(rig.cdi()).unwrap();
        fs::create_dir_all(rig.cdi()).unwrap();
        let registrations = rig.kubelet.record().registrations.len();
        rig.kubelet.restart().await;
        rig.start_agent();
        rig.kubelet.until("the registration", |k| k.record().registrations.len() > registrations).await;
        assert_eq!(rig.real().len(), 3, "registered before the slices were there");
        rig.until_state(&held, InUse).await;
        rig.kubelet.until("the devices to be healthy", |k| k.healthy(R1).len() == 3).await;
        let given = rig.kubelet.admit(&one).await.unwrap();
        assert_eq!(starts(&given), [held[0]]);
        let uuid = rig.uuid_at(u32::from(held[0]));
        assert!(!before.contains(&uuid), "{uuid}");
        let file = format!("slicegate.dev-mig-{}_1g.10gb_{}.json", rig.gpus[0], held[0]);
        let described = fs::read_to_string(rig.cdi().join(file)).unwrap();
        assert!(described.contains(&uuid), "{described}");
        as_before(&rig, [&one, &two], &held).await;
    });
}

#[test]
fn after_a_reboot_a_place_that_is_wanted_otherwise_is_not_given_to_the_pod_that_had_it() {
    on_node(async |mut rig: Rig| {
        let (one, _two, held) = in_use(&mut rig).await;
        rig.kill_agent().await;
        rig.kubelet.stop().await;
        rig.boot = "boot-2".to_owned();
        rig.simulate(|config| config["bootID"] = "boot-2".into());
        // The controller has decided otherwise meanwhile.
        rig.want(&[(P2, 0), (P2, 2), (P2, 4)]);
        rig.kubelet.restart().await;
        rig.agent().await;
        rig.until_state(&[0, 2, 4], Idle).await;
        let error = rig.kubelet.admit(&one).await.unwrap_err();
        assert!(error.contains("no healthy devices"), "{held:?}: {error}");
        rig.check();
    });
}
