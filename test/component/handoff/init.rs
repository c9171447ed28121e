use slicegate::api::mig_node::SliceState::{Idle, InUse};

use super::rig::{P1, P2, R1, R2, starts};
use super::{Rig, on_node};
use crate::kubelet::{Choice, Kind, Pod};

/// Waits until the kubelet has been told the list of devices again, so often, and the agent has seen what it wrote then.
async fn asked(rig: &Rig, times: usize) {
    let told = |k: &crate::kubelet::FakeKubelet| k.record().lists.iter().filter(|(r, _)| r == R1).count();
    let before = told(&rig.kubelet);
    rig.kubelet.until("the list to be told again", |k| told(k) >= before + times).await;
    rig.looks(3).await;
}

#[test]
fn a_pod_with_a_slice_in_its_init_container_only_has_it_until_its_end() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 2)]);
        rig.until_state(&[2], Idle).await;
        let pod = Pod::new("team", "one").with(Kind::Init, "prepare", R1, 1).app("main", "cpu", 1);
        let given = rig.kubelet.admit(&pod).await.unwrap();
        assert_eq!(starts(&given), [2]);
        rig.until_state(&[2], InUse).await;
        asked(&rig, 2).await;
        assert_eq!((rig.state(2), rig.bindings().len()), (Some(InUse), 1));
        rig.want(&[]);
        asked(&rig, 1).await;
        assert!(rig.real_at(2).is_some(), "destroyed under an init container");
        rig.want(&[(P1, 2)]);
        rig.kubelet.end(&pod);
        rig.until_state(&[2], Idle).await;
        assert_eq!(rig.bindings(), []);
        rig.check();
    });
}

#[test]
fn what_init_containers_had_passes_on_to_the_containers() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 0), (P1, 1), (P1, 2), (P1, 3)]);
        rig.until_state(&[0, 1, 2, 3], Idle).await;
        rig.kubelet.choose(Choice::Random(3));
        let pod = Pod::new("team", "one")
            .with(Kind::Init, "first", R1, 1)
            .with(Kind::Sidecar, "side", R1, 1)
            .with(Kind::Init, "second", R1, 2)
            .app("main", R1, 3);
        let given = rig.kubelet.admit(&pod).await.unwrap();
        let of = |name: &str| {
            let of: Vec<_> = given.iter().filter(|given| given.container == name).cloned().collect();
            starts(&of)
        };
        let (side, main) = (of("side"), of("main"));
        assert_eq!((side.len(), main.len(), of("second").len()), (1, 3, 2));
        assert!(!main.contains(&side[0]), "{side:?} {main:?}");
        assert!(of("second").iter().all(|start| main.contains(start)), "{given:?}");
        assert_eq!(rig.bindings().len(), 4);
        rig.until("the pod to be named at all of them", |rig| {
            (0..4).all(|start| rig.slice(start).unwrap().pod.as_deref() == Some("team/one"))
        })
        .await;
        rig.kubelet.end(&pod);
        rig.until_state(&[0, 1, 2, 3], Idle).await;
        rig.check();
    });
}

#[test]
fn containers_and_profiles_of_one_pod_have_slices_of_their_own() {
    on_node(async |mut rig: Rig| {
        rig.agent().await;
        rig.want(&[(P1, 0), (P1, 1), (P2, 2), (P2, 4)]);
        rig.until_state(&[0, 1, 2, 4], Idle).await;
        let mut pod = Pod::new("team", "one").app("a", R1, 1).app("b", R2, 2);
        pod.containers[1].limits.push((R1.to_owned(), 1));
        let given = rig.kubelet.admit(&pod).await.unwrap();
        let mut all = starts(&given);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 4]);
        rig.until_state(&[0, 1, 2, 4], InUse).await;
        let before = rig.kubelet.record().allocations.len();
        assert_eq!(
            rig.kubelet.admit(&pod).await.unwrap(),
            given,
            "a container that starts again has what it had"
        );
        assert_eq!(rig.kubelet.record().allocations.len(), before);
        rig.kubelet.end(&pod);
        rig.until_state(&[0, 1, 2, 4], Idle).await;
        rig.check();
    });
}
