//! Slices that had to be made again under pods that survived.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;

use super::Holder;
use crate::support::{World, on_the_node};

#[test]
fn a_container_that_starts_again_finds_the_slice_that_was_made_again_at_its_place() {
    on_the_node("remade", async |world, namespace| {
        let one = world.start_lasting(namespace, "one", "1g.10gb").await?;
        world.knows_its_slice(namespace, &one).await?;
        let id = world.slice_of(&one).await?.and_then(|s| s.gpu_instance_id).context("an instance")?;
        world.real.gpu_state()?.destroy_instance(&one.gpu, id)?;
        let destroyed = is_made_again(world, namespace, &one).await?;

        // The whole GPU at once.
        world.real.gpu_state()?.reset_gpu(&one.gpu)?;
        let reset = is_made_again(world, namespace, &destroyed).await?;
        ensure!(reset.pod_uid == one.pod_uid, "the pod was replaced: {reset:?}");
        world.nothing_leaks(&[&reset]).await
    });
}

/// Waits until a holder's slice has another UUID at the same place, as MIGNode and CDI say, and lets its container start again.
pub async fn is_made_again(world: &World<'_>, namespace: &str, before: &Holder) -> Result<Holder> {
    let remade = world
        .until("the slice is made again", || async {
            let now = world.held(&world.api::<Pod>(namespace).get(&before.pod).await?).await?;
            Ok(now.filter(|now| now.uuid != before.uuid))
        })
        .await?;
    let expected = Holder { uuid: remade.uuid.clone(), ..before.clone() };
    ensure!(remade == expected, "more than the UUID has changed:\n{expected:?}\n{remade:?}");
    let file = format!("/run/cdi/slicegate.dev-mig-{}_1g.10gb_{}.json", before.gpu, before.start);
    let spec = std::fs::read_to_string(world.real.node.path(&file)?)?;
    ensure!(spec.contains(&remade.uuid) && !spec.contains(&before.uuid), "{file}: {spec}");

    world.kill_container(&remade.container).await?;
    let again = world.next_holder(namespace, "one", Some(&remade)).await?;
    ensure!(
        again.pod_uid == before.pod_uid && again.restarts == before.restarts + 1,
        "{remade:?}\n{again:?}"
    );
    ensure!(again.uuid == remade.uuid && again.token == before.token, "{remade:?}\n{again:?}");
    world.knows_its_slice(namespace, &again).await?;
    Ok(again)
}

#[test]
fn a_pod_that_knows_its_slice_by_a_uuid_is_replaced_when_the_slice_was_made_again() {
    on_the_node("remade-envvar", async |world, namespace| {
        world.real.agent_args(&["--device-list-strategy=envvar"]).await?;
        let one = world.start_lasting(namespace, "one", "1g.10gb").await?;
        let beside = world.start(namespace, "beside", "1g.10gb").await?;
        let id = world.slice_of(&one).await?.and_then(|s| s.gpu_instance_id).context("an instance")?;
        world.real.gpu_state()?.destroy_instance(&one.gpu, id)?;
        let told = world.event(namespace, &one.pod, "SliceRemade").await?;
        ensure!(told.contains("made again") && told.contains("deleted"), "{told}");
        let next = world.next_holder(namespace, "one", Some(&one)).await?;
        ensure!(next.pod_uid != one.pod_uid && next.uuid != one.uuid, "{one:?}\n{next:?}");
        world.is_undisturbed(namespace, &beside).await?;
        world.nothing_leaks(&[&next, &beside]).await
    });
}
