use std::collections::{BTreeMap, BTreeSet};

use slicegate::api::mig_node::SliceState::{Idle, InUse};

use super::rig::{P1, P2, R1, R2, pod, starts};
use super::{Rig, on_node};
use crate::kubelet::{Choice, Given, Pod};

#[test]
fn a_pod_gets_a_slice_that_is_there_and_it_is_on_disk_before_the_kubelet_knows() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2), (P1, 5)]);
        rig.until_state(&[2, 5], Idle).await;
        rig.kubelet.choose(Choice::Prefer(vec!["1g.10gb/1".to_owned()]));
        let given = rig.kubelet.admit(&pod("one")).await.unwrap();
        let at = starts(&given)[0];
        assert_eq!(rig.bindings(), [("1g.10gb/1".to_owned(), u64::from(at))]);
        let names: Vec<&str> = given[0].response.cdi_devices.iter().map(|d| d.name.as_str()).collect();
        let name = format!("slicegate.dev/mig={}_1g.10gb_{at}", rig.gpus[0]);
        assert_eq!(names, ["slicegate.dev/mig=driver", &name]);
        rig.until_state(&[at], InUse).await;
        rig.until("the pod's name", |rig| rig.slice(at).unwrap().pod.as_deref() == Some("team/one")).await;
        assert_eq!(rig.api.resource(R1).1, 2, "what pods have counts as allocatable");
        rig.check();
    });
}

#[test]
fn after_its_pod_a_slice_is_idle_and_the_same_device_can_be_given_again() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        for name in ["one", "two", "three"] {
            let (pod, start) = rig.run(name).await;
            assert_eq!((start, rig.bindings()), (2, vec![("1g.10gb/0".to_owned(), 2)]));
            rig.until("the pod's name", |rig| {
                rig.slice(2).unwrap().pod.is_some_and(|pod| pod == format!("team/{name}"))
            })
            .await;
            rig.kubelet.end(&pod);
            rig.until_state(&[2], Idle).await;
            assert_eq!(rig.bindings(), []);
        }
        assert_eq!(rig.real().len(), 1);
        rig.check();
    });
}

#[test]
fn the_next_pod_may_come_before_the_agent_has_seen_the_end_of_the_last() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        let mut before = rig.run("pod-0").await.0;
        for n in 1..20 {
            rig.kubelet.end(&before);
            let (pod, start) = rig.run(&format!("pod-{n}")).await;
            assert_eq!(start, 2);
            before = pod;
        }
        rig.until("the last pod's name", |rig| rig.slice(2).unwrap().pod.as_deref() == Some("team/pod-19"))
            .await;
        rig.check();
    });
}

/// SplitMix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The geometries between which `spec` goes to and fro.
const GEOMETRIES: [&[(&str, u8)]; 4] = [
    &[(P1, 0), (P1, 1), (P1, 2), (P1, 3), (P1, 4), (P1, 5), (P1, 6)],
    &[(P1, 0), (P1, 1), (P2, 2), (P2, 4), (P1, 6)],
    &[(P2, 0), (P2, 2), (P1, 4), (P1, 5), (P1, 6)],
    &[(P1, 3), (P1, 6)],
];

/// Pods come and go, at random devices, while `spec` changes under them.
async fn crowd(rig: &mut Rig, mut seed: u64) {
    rig.kubelet.choose(Choice::Random(seed));
    rig.agent().await;
    let mut running: BTreeMap<String, (Pod, Vec<Given>, Vec<String>)> = BTreeMap::new();
    let (mut admitted, mut refused) = (0, 0);
    for n in 0..60 {
        match next(&mut seed) % 8 {
            0 => rig.want(GEOMETRIES[usize::try_from(next(&mut seed) % 4).unwrap()]),
            1..=4 => {
                let name = format!("pod-{n}");
                let (resource, count) =
                    if next(&mut seed).is_multiple_of(3) { (R2, 1) } else { (R1, 1 + next(&mut seed) % 2) };
                let pod = Pod::new("team", &name).app("main", resource, usize::try_from(count).unwrap());
                match rig.kubelet.admit(&pod).await {
                    Ok(given) => {
                        admitted += 1;
                        let uuids = starts(&given).into_iter().map(|at| rig.uuid_at(u32::from(at))).collect();
                        running.insert(name, (pod, given, uuids));
                    }
                    Err(_) => refused += 1,
                }
            }
            _ if running.is_empty() => rig.looks(1).await,
            _ => {
                let at = usize::try_from(next(&mut seed) % running.len() as u64).unwrap();
                let name = running.keys().nth(at).unwrap().clone();
                rig.kubelet.end(&running.remove(&name).unwrap().0);
            }
        }
        let held: Vec<&String> = running.values().flat_map(|(.., uuids)| uuids).collect();
        assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "one slice, two pods");
        let real: BTreeSet<String> =
            rig.real().iter().filter_map(|i| i.mig_uuid().map(str::to_owned)).collect();
        for uuid in held {
            assert!(real.contains(uuid), "destroyed under a pod");
        }
    }
    eprintln!("{admitted} admitted, {refused} refused");
    assert!(admitted > 3, "hardly anything was tried: {admitted} admitted, {refused} refused");
    for (pod, ..) in running.values() {
        rig.kubelet.end(pod);
    }
    rig.want(GEOMETRIES[0]);
    rig.until_state(&[0, 1, 2, 3, 4, 5, 6], Idle).await;
    rig.until("all to be shown", |rig| rig.api.resource(R1) == (7, 7) && rig.api.resource(R2).1 == 0).await;
    rig.kubelet.until("no binding to be left", |_| rig.bindings().is_empty()).await;
    rig.check();
}

#[test]
fn nobody_gets_a_slice_twice_whatever_the_kubelet_chooses_and_spec_becomes() {
    on_node(async |mut rig: Rig| {
        for seed in 1..=6 {
            crowd(&mut rig, seed).await;
            rig.stop_agent().await;
        }
    });
}
