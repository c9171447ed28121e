use std::collections::BTreeSet;

use super::*;
use crate::tables;

fn model(key: &str) -> &'static Model {
    tables::model(key).unwrap()
}

fn gpu(model: &Model) -> Gpu {
    Gpu {
        uuid: "GPU-under-test".to_owned(),
        model: model.key.clone(),
        mig_enabled: true,
        mig_pending: true,
        created: 0,
        lost: false,
        processes: Vec::new(),
        gpu_instances: Vec::new(),
    }
}

fn create(model: &Model, gpu: &mut Gpu, name: &str, start: u32) -> NvmlResult<u32> {
    let profile = model.by_name(name).unwrap();
    create_gpu_instance(model, gpu, profile.id, Some(Placement { start, size: profile.size }))
}

/// Every set of placed instances to which no further one can be added.
fn maximal(
    model: &Model,
    gpu: &Gpu,
    names: &[&str],
    seen: &mut BTreeSet<String>,
    found: &mut BTreeSet<String>,
) {
    let layout = |gpu: &Gpu| {
        let mut at: Vec<_> = gpu.gpu_instances.iter().map(|i| format!("{}:{}", i.start, i.profile)).collect();
        at.sort();
        at.join(" ")
    };
    if !seen.insert(layout(gpu)) {
        return;
    }
    let mut full = true;
    for name in names {
        for start in &model.by_name(name).unwrap().starts {
            let mut next = gpu.clone();
            if create(model, &mut next, name, *start).is_ok() {
                full = false;
                maximal(model, &next, names, seen, found);
            }
        }
    }
    if full {
        found.insert(layout(gpu));
    }
}

fn count_maximal(key: &str, names: &[&str]) -> usize {
    let model = model(key);
    let mut found = BTreeSet::new();
    maximal(model, &gpu(model), names, &mut BTreeSet::new(), &mut found);
    found.len()
}

#[test]
fn a100_has_the_19_maximal_configurations_that_nvidia_documents() {
    assert_eq!(count_maximal("A100-80GB", &["1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]), 19);
    assert_eq!(count_maximal("A100-40GB", &["1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"]), 19);
}

#[test]
fn a30_has_the_5_maximal_configurations_that_nvidia_documents() {
    assert_eq!(count_maximal("A30-24GB", &["1g.6gb", "2g.12gb", "4g.24gb"]), 5);
}

#[test]
fn every_profile_of_every_model_can_be_filled_to_its_count_and_no_further() {
    let keys = tables::models().unwrap();
    assert_eq!(keys.len(), 14);
    for key in keys {
        let model = model(key);
        for profile in &model.profiles {
            let mut gpu = gpu(model);
            assert_eq!(
                remaining_capacity(model, &gpu, profile.id),
                Ok(profile.max_count),
                "{key} {}",
                profile.name
            );
            for n in 0..profile.max_count {
                let gi = create_gpu_instance(model, &mut gpu, profile.id, None).unwrap();
                let full = profile.full_compute_profile();
                assert_eq!(create_compute_instance(model, &mut gpu, gi, full), Ok(0));
                assert_eq!(remaining_capacity(model, &gpu, profile.id), Ok(profile.max_count - n - 1));
            }
            let more = create_gpu_instance(model, &mut gpu, profile.id, None);
            assert_eq!(more, Err(Code::INSUFFICIENT_RESOURCES));
        }
    }
}

#[test]
fn ids_follow_the_share_of_the_gpu_and_are_reused() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    assert_eq!(create(a100, &mut g, "3g.40gb", 4), Ok(1));
    assert_eq!(create(a100, &mut g, "2g.20gb", 2), Ok(3));
    assert_eq!(create(a100, &mut g, "1g.10gb", 1), Ok(7));
    assert_eq!(create(a100, &mut g, "1g.10gb", 0), Ok(8));
    destroy_gpu_instance(&mut g, 7).unwrap();
    assert_eq!(create(a100, &mut g, "1g.10gb", 1), Ok(7));
    assert_eq!(create(a100, &mut gpu(a100), "7g.80gb", 0), Ok(0));

    let rtx = model("RTX-PRO-6000-96GB");
    let mut g = gpu(rtx);
    assert_eq!(create(rtx, &mut g, "2g.48gb", 6), Ok(1));
    assert_eq!(create(rtx, &mut g, "1g.24gb", 3), Ok(3));
    assert_eq!(create(rtx, &mut gpu(rtx), "4g.96gb", 0), Ok(0));
}

#[test]
fn a_placement_must_be_of_the_table_and_free() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    assert_eq!(create(a100, &mut g, "1g.10gb", 7), Err(Code::INVALID_ARGUMENT));
    assert_eq!(create(a100, &mut g, "3g.40gb", 2), Err(Code::INVALID_ARGUMENT));
    let wrong_size = Some(Placement { start: 0, size: 3 });
    assert_eq!(create_gpu_instance(a100, &mut g, 9, wrong_size), Err(Code::INVALID_ARGUMENT));
    // 0x2 is the enum of 3g; its id is 9.
    assert_eq!(create_gpu_instance(a100, &mut g, 0x2, None), Err(Code::INVALID_ARGUMENT));
    create(a100, &mut g, "1g.10gb", 5).unwrap();
    assert_eq!(create(a100, &mut g, "3g.40gb", 4), Err(Code::INSUFFICIENT_RESOURCES));
    assert_eq!(create(a100, &mut g, "1g.10gb", 5), Err(Code::INSUFFICIENT_RESOURCES));
    assert_eq!(create(a100, &mut g, "3g.40gb", 0), Ok(1));
}

#[test]
fn without_a_placement_the_driver_takes_the_first_free_one_even_if_that_fragments() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    for (profile, expected) in [(19, Ok(0)), (19, Ok(1)), (14, Ok(2)), (9, Ok(4)), (9, Err(Code(23)))] {
        let made = create_gpu_instance(a100, &mut g, profile, None);
        assert_eq!(made.map(|gi| g.gpu_instance(gi).unwrap().start), expected);
    }
}

#[test]
fn a_gpu_has_one_set_of_media_extensions() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    create(a100, &mut g, "1g.10gb+me", 0).unwrap();
    assert_eq!(create(a100, &mut g, "1g.10gb+me", 1), Err(Code::INSUFFICIENT_RESOURCES));
    assert_eq!(create(a100, &mut g, "1g.10gb", 1), Ok(8));
    // Of different profiles too.
    let a30 = model("A30-24GB");
    let mut g = gpu(a30);
    create(a30, &mut g, "1g.6gb+me", 0).unwrap();
    assert_eq!(create(a30, &mut g, "2g.12gb+me", 2), Err(Code::INSUFFICIENT_RESOURCES));
    assert_eq!(create(a30, &mut g, "2g.12gb", 2), Ok(1));
}

#[test]
fn all_media_engines_leave_room_only_for_profiles_without() {
    let rtx = model("RTX-PRO-6000-96GB");
    let beside = ["1g.24gb", "1g.24gb+me", "1g.24gb+gfx", "1g.24gb+me.all", "2g.48gb"];
    for other in beside {
        let mut g = gpu(rtx);
        create(rtx, &mut g, "1g.24gb+me.all", 0).unwrap();
        assert_eq!(create(rtx, &mut g, other, 6), Err(Code::INSUFFICIENT_RESOURCES), "{other}");
        let mut g = gpu(rtx);
        create(rtx, &mut g, other, 6).unwrap();
        assert_eq!(create(rtx, &mut g, "1g.24gb+me.all", 0), Err(Code::INSUFFICIENT_RESOURCES), "{other}");
    }
    let mut g = gpu(rtx);
    create(rtx, &mut g, "1g.24gb+me.all", 0).unwrap();
    create(rtx, &mut g, "2g.48gb-me", 6).unwrap();
    create(rtx, &mut g, "1g.24gb-me", 3).unwrap();
}

#[test]
fn compute_instances_share_the_slices_of_their_gpu_instance() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    let gi = create(a100, &mut g, "3g.40gb", 0).unwrap();
    assert_eq!(remaining_compute_capacity(a100, &g, gi, 0), Ok(3));
    assert_eq!(create_compute_instance(a100, &mut g, gi, 1), Ok(0));
    assert_eq!(remaining_compute_capacity(a100, &g, gi, 0), Ok(1));
    assert_eq!(create_compute_instance(a100, &mut g, gi, 2), Err(Code::INSUFFICIENT_RESOURCES));
    assert_eq!(create_compute_instance(a100, &mut g, gi, 0), Ok(1));
    assert_eq!(create_compute_instance(a100, &mut g, gi, 0), Err(Code::INSUFFICIENT_RESOURCES));
    assert_eq!(create_compute_instance(a100, &mut g, gi, 3), Err(Code::INVALID_ARGUMENT));
    assert_eq!(create_compute_instance(a100, &mut g, 2, 0), Err(Code::NOT_FOUND));
    assert_eq!(destroy_gpu_instance(&mut g, gi), Err(Code::IN_USE));
}

#[test]
fn hopper_offers_a_wider_single_slice_within_2g() {
    let h100 = model("H100-SXM5-80GB");
    let mut g = gpu(h100);
    let gi = create(h100, &mut g, "2g.20gb", 0).unwrap();
    let within = h100.by_name("2g.20gb").unwrap();
    let sm = |id| compute::by_id(h100, within, id).map(|p| p.sm_count);
    assert_eq!([sm(0), sm(1), sm(7)], [Ok(16), Ok(32), Ok(26)]);
    create_compute_instance(h100, &mut g, gi, 7).unwrap();
    // A slice is left, its SMs are not.
    assert_eq!(create_compute_instance(h100, &mut g, gi, 0), Err(Code::INSUFFICIENT_RESOURCES));
}

#[test]
fn the_full_width_compute_instance_has_the_most_multiprocessors() {
    for key in tables::models().unwrap() {
        let model = model(key);
        for within in &model.profiles {
            let all = (0..9).filter_map(|e| compute::by_enum(model, within, e).ok());
            let widest = all.max_by_key(|p| (p.sm_count, std::cmp::Reverse(p.id))).unwrap();
            assert_eq!(widest.id, within.full_compute_profile(), "{key} {}", within.name);
        }
    }
}

#[test]
fn a_slice_made_again_has_another_uuid() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    let mut uuids = BTreeSet::new();
    for _ in 0..3 {
        let gi = create(a100, &mut g, "1g.10gb", 0).unwrap();
        let ci = create_compute_instance(a100, &mut g, gi, 0).unwrap();
        uuids.insert(g.compute_instance(gi, ci).unwrap().uuid.clone());
        destroy_compute_instance(&mut g, gi, ci).unwrap();
        destroy_gpu_instance(&mut g, gi).unwrap();
    }
    assert_eq!(uuids.len(), 3);
}

#[test]
fn a_process_holds_its_slice() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    let gi = create(a100, &mut g, "1g.10gb", 0).unwrap();
    create_compute_instance(a100, &mut g, gi, 0).unwrap();
    let uuid = g.compute_instance(gi, 0).unwrap().uuid.clone();
    add_process(&mut g, &uuid, 42).unwrap();
    add_process(&mut g, &uuid, 42).unwrap();
    assert_eq!(destroy_compute_instance(&mut g, gi, 0), Err(Code::IN_USE));
    remove_process(&mut g, &uuid, 42).unwrap();
    assert_eq!(remove_process(&mut g, &uuid, 42), Err(Code::NOT_FOUND));
    assert_eq!(destroy_compute_instance(&mut g, gi, 0), Ok(()));
}

#[test]
fn without_mig_mode_nothing_can_be_made() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    create(a100, &mut g, "1g.10gb", 0).unwrap();
    assert_eq!(set_mig_mode(&mut g, false, Ok(())), Err(Code::IN_USE));
    assert_eq!((g.mig_enabled, g.mig_pending), (true, false));
    destroy_gpu_instance(&mut g, 7).unwrap();
    assert_eq!(set_mig_mode(&mut g, false, Ok(())), Ok(()));
    assert_eq!(create(a100, &mut g, "1g.10gb", 0), Err(Code::NOT_SUPPORTED));
    assert_eq!(remaining_capacity(a100, &g, 19), Err(Code::NOT_SUPPORTED));
}

#[test]
fn a_reboot_drops_instances_and_on_later_architectures_the_mig_mode() {
    for (key, survives) in [("A100-80GB", true), ("H100-SXM5-80GB", false)] {
        let model = model(key);
        let mut g = gpu(model);
        create(model, &mut g, "7g.80gb", 0).unwrap();
        reboot(model, &mut g, false);
        assert!(g.gpu_instances.is_empty());
        assert_eq!((g.mig_enabled, g.mig_pending), (survives, survives), "{key}");
    }
}

#[test]
fn mig_devices_are_ordered_by_gpu_instance_and_have_gaps() {
    let a100 = model("A100-80GB");
    let mut g = gpu(a100);
    for (name, start) in [("1g.10gb", 0), ("1g.10gb", 1), ("2g.20gb", 2)] {
        create(a100, &mut g, name, start).unwrap();
    }
    create_compute_instance(a100, &mut g, 8, 0).unwrap();
    create_compute_instance(a100, &mut g, 3, 0).unwrap();
    create_compute_instance(a100, &mut g, 3, 0).unwrap();
    assert_eq!(mig_devices(&g), [Some((3, 0)), Some((3, 1)), None, Some((8, 0))]);
}

#[test]
fn a_reset_is_refused_while_a_process_computes_unless_the_gpu_is_lost() {
    let h100 = model("H100-SXM5-80GB");
    let mut g = gpu(h100);
    let gi = create(h100, &mut g, "1g.10gb", 0).unwrap();
    create_compute_instance(h100, &mut g, gi, 0).unwrap();
    let uuid = g.compute_instance(gi, 0).unwrap().uuid.clone();
    add_process(&mut g, &uuid, 42).unwrap();
    let before = g.clone();
    assert_eq!(reset(h100, &mut g), Err(Code::IN_USE));
    assert_eq!(g, before);
    g.lost = true;
    assert_eq!(reset(h100, &mut g), Ok(()));
    assert_eq!((g.lost, g.mig_enabled, g.mig_pending, g.gpu_instances.len()), (false, false, false, 0));
    let whole = g.uuid.clone();
    add_process(&mut g, &whole, 42).unwrap();
    assert_eq!(reset(h100, &mut g), Err(Code::IN_USE));
}

#[test]
fn a_pending_mig_mode_waits_for_a_reset() {
    let a100 = model("A100-80GB");
    let mut g = Gpu { mig_enabled: false, mig_pending: false, ..gpu(a100) };
    assert_eq!(set_mig_mode(&mut g, true, Err(Code::RESET_REQUIRED)), Err(Code::RESET_REQUIRED));
    assert_eq!((g.mig_enabled, g.mig_pending), (false, true));
    reset(a100, &mut g).unwrap();
    assert_eq!((g.mig_enabled, g.mig_pending), (true, true));
    assert_eq!(set_mig_mode(&mut g, true, Err(Code::RESET_REQUIRED)), Ok(()), "it is on already");
}
