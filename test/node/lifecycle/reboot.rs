//! The node's power goes and comes back: no MIG instance is left.

use anyhow::ensure;

use crate::support::on_the_node;

#[test]
fn after_a_reboot_slices_are_made_again_before_pods_can_have_them_and_every_job_goes_on() {
    on_the_node("reboot", async |world, namespace| {
        let once = world.start(namespace, "once", "1g.10gb").await?;
        let lasting = world.start_lasting(namespace, "lasting", "2g.20gb").await?;
        world.real.reboot("boot-2").await?;

        for (job, before) in [("once", &once), ("lasting", &lasting)] {
            let after = world.next_holder(namespace, job, Some(before)).await?;
            let all = [&once.uuid, &lasting.uuid];
            ensure!(!all.contains(&&after.uuid), "{job} has a slice of another boot: {after:?}");
            if after.pod_uid == before.pod_uid {
                // What its container was told names the place.
                ensure!((&after.gpu, after.start) == (&before.gpu, before.start), "{before:?}\n{after:?}");
            }
            let exists =
                world.real.gpu_state()?.instances()?.iter().any(|i| i.mig_uuid() == Some(&after.uuid));
            ensure!(exists, "NVML does not have the slice of {after:?}");
            world.knows_its_slice(namespace, &after).await?;
        }
        let log = world.agent_log().await?;
        let registered = log.find("registering with the kubelet");
        let made: Vec<usize> = log.match_indices("slice made").map(|(at, _)| at).take(2).collect();
        ensure!(
            made.len() == 2 && made.iter().all(|at| Some(*at) < registered),
            "slices {made:?} made, registered {registered:?}: {log}"
        );
        let boot = world.mig_node().await?.status.and_then(|status| status.boot_id);
        ensure!(boot.as_deref() == Some("boot-2"), "{boot:?}");
        world.clear(namespace).await?;
        world.nothing_leaks(&[]).await
    });
}
