use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::*;

const GPU: &str = "GPU-5c89b2a8-3b3a-4f0e-9d1c-1a2b3c4d5e6f";

struct World {
    root: tempfile::TempDir,
    args: Args,
    dir: CdiDir,
}

/// A host with two GPUs, whose device nodes nobody may make, and an empty folder.
fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    nvml_sim::host::lay_out(root.path(), 2).unwrap();
    let args = Args {
        device_list_strategy: super::super::Strategy::CdiCri,
        cdi_dir: root.path().join("cdi"),
        cdi_base: root.path().join("cdi/nvidia.yaml"),
        host: Host { dev: root.path().join("dev"), proc: root.path().join("proc") },
    };
    fs::create_dir(&args.cdi_dir).unwrap();
    let dir = CdiDir::new(&args);
    World { root, args, dir }
}

/// A slice on the second GPU, which is number 1 in `/dev` and for nvidia-smi number 4.
fn device(profile: &str, start: u8) -> SliceDevice {
    SliceDevice {
        gpu: GPU.into(),
        gpu_index: 4,
        gpu_minor: 1,
        slice: Slice { start, size: 1, profile: profile.parse().unwrap() },
        mig_uuid: format!("MIG-{start}"),
        gpu_instance: 7 + u32::from(start),
        compute_instance: 0,
    }
}

impl World {
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.args.cdi_dir).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn path(&self, device: &str) -> PathBuf {
        self.args.cdi_dir.join(file_name(device))
    }

    fn spec(&self, device: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(device)).unwrap()).unwrap()
    }

    fn is_ready(&self, device: &SliceDevice) -> bool {
        self.dir.is_ready(&device.gpu, &device.slice)
    }
}

fn file_of(device: &SliceDevice) -> String {
    file_name(&device.device())
}

#[test]
fn a_slice_has_its_nodes_by_the_tables_numbers_and_a_variable_that_says_where_it_is() {
    let mut world = world();
    let slice = device("1g.10gb+me", 2);
    world.dir.sync(std::slice::from_ref(&slice)).unwrap();
    let minor = |compute| nvml_sim::host::capability_minor(1, 9, compute);
    let node = |path: String, major: u32, minor: u32| json!({"path": path, "type": "c", "major": major, "minor": minor, "permissions": "rw"});
    let cap = |minor| node(format!("/dev/nvidia-caps/nvidia-cap{minor}"), 236, minor);
    let expected = json!({
        "cdiVersion": "0.3.0",
        "kind": "slicegate.dev/mig",
        "devices": [{
            "name": format!("{GPU}_1g.10gb.me_2"),
            "containerEdits": {
                "env": ["SLICEGATE_MIG_4_2=MIG-2"],
                "deviceNodes": [node("/dev/nvidia1".to_owned(), 195, 1), cap(minor(None)), cap(minor(Some(0)))],
            },
        }],
    });
    assert_eq!(world.spec(&format!("{GPU}_1g.10gb.me_2")), expected);
    assert!(world.is_ready(&slice));
    assert!(!world.is_ready(&device("1g.10gb+me", 3)));
}

#[test]
fn variables_of_several_slices_do_not_hide_each_other() {
    let mut world = world();
    let mut elsewhere = device("1g.10gb", 0);
    (elsewhere.gpu, elsewhere.gpu_index, elsewhere.gpu_minor) = ("GPU-0".into(), 0, 0);
    let slices = [device("1g.10gb", 0), device("1g.10gb+me", 1), elsewhere];
    world.dir.sync(&slices).unwrap();
    let variables: BTreeSet<String> = slices
        .iter()
        .flat_map(|s| {
            let spec = world.spec(&s.device());
            spec["devices"][0]["containerEdits"]["env"].as_array().unwrap().clone()
        })
        .map(|v| v.as_str().unwrap().split_once('=').unwrap().0.to_owned())
        .collect();
    assert_eq!(variables.len(), slices.len(), "{variables:?}");
}

#[test]
fn containers_share_the_drivers_nodes_of_which_some_are_optional() {
    let mut world = world();
    fs::remove_file(world.root.path().join("dev/nvidia-uvm-tools")).unwrap();
    world.dir.sync(&[device("1g.10gb", 0)]).unwrap();
    let expected = json!({
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [
            {"path": "/dev/nvidiactl", "type": "c", "major": 195, "minor": 255, "permissions": "rw"},
            {"path": "/dev/nvidia-uvm", "type": "c", "major": 235, "minor": 0, "permissions": "rw"},
        ],
    });
    let spec = world.spec("driver");
    assert_eq!(spec["devices"], json!([{"name": "driver", "containerEdits": expected}]));
    assert_eq!(spec["cdiVersion"], "0.3.0");
}

#[test]
fn a_node_whose_number_is_unknown_is_left_to_the_runtime() {
    let mut world = world();
    fs::write(world.root.path().join("proc/devices"), "Character devices:\n236 nvidia-caps\n").unwrap();
    let slice = device("1g.10gb", 0);
    world.dir.sync(std::slice::from_ref(&slice)).unwrap();
    let nodes = &world.spec(&slice.device())["devices"][0]["containerEdits"]["deviceNodes"];
    assert_eq!(nodes[0], json!({"path": "/dev/nvidia1", "permissions": "rw"}));
}

#[test]
fn nvidias_edits_are_merged_and_nothing_of_them_is_lost() {
    let mut world = world();
    let hooks =
        json!([{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook", "args": ["a", "b"]}]);
    let base = json!({
        "cdiVersion": "0.7.0",
        "kind": "nvidia.com/gpu",
        "devices": [{"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}],
        "containerEdits": {
            "env": ["A=b"],
            "deviceNodes": [{"path": "/dev/nvidia-modeset"}, {"path": "/dev/nvidiactl", "fileMode": 438}],
            "hooks": hooks,
            "additionalGids": [44],
        },
    });
    fs::write(&world.args.cdi_base, base.to_string()).unwrap();
    world.dir.sync(&[device("1g.10gb", 0)]).unwrap();
    assert_eq!(world.dir.notice(), None);
    let spec = world.spec("driver");
    assert_eq!(spec["cdiVersion"], "0.7.0", "the version that the base's edits may need");
    let edits = &spec["devices"][0]["containerEdits"];
    assert_eq!(edits["hooks"], hooks);
    assert_eq!(edits["additionalGids"], json!([44]));
    assert_eq!(edits["env"], json!(["A=b", "NVIDIA_VISIBLE_DEVICES=void"]));
    let nodes = edits["deviceNodes"].as_array().unwrap();
    let paths: Vec<_> = nodes.iter().map(|n| n["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/dev/nvidia-modeset", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]);
    assert_eq!(nodes[1], json!({"path": "/dev/nvidiactl", "fileMode": 438}), "NVIDIA's word stands");
    let slice = world.spec(&device("1g.10gb", 0).device());
    assert_eq!(slice["devices"][0]["containerEdits"].get("hooks"), None, "hooks would run for each slice");
}

#[test]
fn without_nvidias_spec_slices_are_served_and_people_are_told() {
    let mut world = world();
    assert_eq!(world.dir.notice(), None, "not looked yet");
    let slice = device("1g.10gb", 0);
    world.dir.sync(std::slice::from_ref(&slice)).unwrap();
    assert!(world.is_ready(&slice));
    let notice = world.dir.notice().unwrap();
    let command = format!("nvidia-ctk cdi generate --output={}", world.args.cdi_base.display());
    assert!(notice.contains(&command), "{notice}");
}

#[test]
fn a_base_that_cannot_be_used_is_an_error_and_what_was_good_stays() {
    let mut world = world();
    let slice = [device("1g.10gb", 0)];
    fs::write(&world.args.cdi_base, "cdiVersion: 0.5.0\ncontainerEdits: {env: [A=b]}\n").unwrap();
    world.dir.sync(&slice).unwrap();
    let good = world.spec("driver");
    fs::write(&world.args.cdi_base, "cdiVersion: 0.5.0\ncontainerEdits: [broken").unwrap();
    let error = world.dir.sync(&slice).unwrap_err();
    assert!(matches!(error, CdiError::Base { .. }), "{error}");
    assert_eq!(world.spec("driver"), good);
    assert!(world.is_ready(&slice[0]));
    fs::remove_file(world.path("driver")).unwrap();
    world.dir.sync(&slice).unwrap_err();
    assert!(!world.is_ready(&slice[0]), "a container would not start");
}

#[test]
fn what_is_there_already_is_not_written_again() {
    let mut world = world();
    let slices = [device("1g.10gb", 0), device("1g.10gb-me", 1)];
    world.dir.sync(&slices).unwrap();
    let stamps = |world: &World| {
        world
            .names()
            .iter()
            .map(|name| {
                let found = fs::metadata(world.args.cdi_dir.join(name)).unwrap();
                (name.clone(), found.ino(), found.mtime(), found.mtime_nsec())
            })
            .collect::<Vec<_>>()
    };
    let before = stamps(&world);
    assert_eq!(before.len(), 3);
    world.dir.sync(&slices).unwrap();
    CdiDir::new(&world.args).sync(&slices).unwrap();
    assert_eq!(stamps(&world), before);
}

#[test]
fn an_instance_made_again_at_its_place_keeps_the_name() {
    let mut world = world();
    let mut slice = device("1g.10gb", 0);
    world.dir.sync(std::slice::from_ref(&slice)).unwrap();
    let names = world.names();
    (slice.mig_uuid, slice.gpu_instance, slice.compute_instance) = ("MIG-other".to_owned(), 12, 1);
    world.dir.sync(std::slice::from_ref(&slice)).unwrap();
    assert_eq!(world.names(), names);
    let edits = &world.spec(&slice.device())["devices"][0]["containerEdits"];
    assert_eq!(edits["env"], json!(["SLICEGATE_MIG_4_0=MIG-other"]));
    let minor = nvml_sim::host::capability_minor(1, 12, Some(1));
    assert_eq!(edits["deviceNodes"][2]["minor"], minor);
}

#[test]
fn only_our_own_files_are_removed_leftovers_among_them() {
    let mut world = world();
    let foreign = ["nvidia.json", "slicegate.dev-migs.json", ".slicegate.dev-mig-x.json", "other.new"];
    for name in foreign {
        fs::write(world.args.cdi_dir.join(name), "{}").unwrap();
    }
    fs::create_dir(world.args.cdi_dir.join("slicegate.dev-mig-folder")).unwrap();
    let leftovers =
        ["slicegate.dev-mig-GPU-0_1g.10gb_0.json", "slicegate.dev-mig-a.new", "slicegate.dev-mig-driver.new"];
    for name in leftovers {
        fs::write(world.args.cdi_dir.join(name), "{\"half").unwrap();
    }
    let (kept, gone) = (device("1g.10gb", 0), device("1g.10gb", 1));
    world.dir.sync(&[kept.clone(), gone.clone()]).unwrap();
    world.dir.sync(std::slice::from_ref(&kept)).unwrap();
    assert!(world.is_ready(&kept) && !world.is_ready(&gone));
    let mut expected: Vec<String> = foreign.map(str::to_owned).into();
    expected.push("slicegate.dev-mig-folder".to_owned());
    let foreign = expected.clone();
    expected.extend([file_name("driver"), file_of(&kept)]);
    expected.sort();
    assert_eq!(world.names(), expected);
    world.dir.sync(&[]).unwrap();
    let mut expected = foreign;
    expected.sort();
    assert_eq!(world.names(), expected, "nothing wanted, nothing left");
}

#[test]
fn nothing_wanted_needs_no_driver() {
    let mut world = world();
    fs::remove_dir_all(&world.args.host.proc).unwrap();
    world.dir.sync(&[]).unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
}

#[test]
fn a_runtime_never_meets_half_a_file() {
    let mut world = world();
    let mut slice = device("1g.10gb", 0);
    world.dir.sync(std::slice::from_ref(&slice)).unwrap();
    let (folder, done) = (world.args.cdi_dir.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // As a runtime does: all files of the folder whose names it knows to be specs.
        let reader = scope.spawn(|| {
            let (mut read, mut uuids) = (0_u32, BTreeSet::new());
            while !done.load(Ordering::Acquire) || read == 0 {
                for entry in fs::read_dir(&folder).unwrap() {
                    let path = entry.unwrap().path();
                    if path.extension().is_some_and(|e| e == "json" || e == "yaml") {
                        let text = fs::read(&path).unwrap();
                        let spec: Value = serde_json::from_slice(&text)
                            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                        uuids.insert(spec["devices"][0]["containerEdits"]["env"][0].to_string());
                        read += 1;
                    }
                }
            }
            uuids
        });
        for n in 0..100 {
            // Long and short in turn, so that writing in place would leave a tail or lack one.
            slice.mig_uuid = format!("MIG-{}", "x".repeat(n % 2 * 100_000));
            world.dir.sync(std::slice::from_ref(&slice)).unwrap();
        }
        done.store(true, Ordering::Release);
        assert!(reader.join().unwrap().len() > 1, "the reader saw no change");
    });
}

#[test]
fn a_slice_with_something_wrong_keeps_no_other_back_and_has_no_old_file() {
    let mut world = world();
    let (good, mut bad) = (device("1g.10gb", 0), device("1g.10gb", 1));
    world.dir.sync(&[bad.clone(), good.clone()]).unwrap();
    bad.gpu_instance = 15;
    let error = world.dir.sync(&[bad.clone(), good.clone()]).unwrap_err().to_string();
    assert!(error.contains("mig-minors does not list gpu1/gi15/access"), "{error}");
    assert!(world.is_ready(&good) && !world.is_ready(&bad));
    assert_eq!(world.names(), [file_of(&good), file_name("driver")]);
}

#[test]
fn a_slice_whose_nodes_cannot_be_made_is_not_ready() {
    let mut world = world();
    let slice = device("1g.10gb", 0);
    let capability = slice.capabilities(&world.args.host.numbers().unwrap()).unwrap();
    fs::remove_file(world.args.host.proc.join(&capability[1].attributes)).unwrap();
    // Whoever may make nodes may not make them under a file.
    fs::remove_dir(world.args.host.dev.join("nvidia-caps")).unwrap();
    fs::write(world.args.host.dev.join("nvidia-caps"), "").unwrap();
    let error = world.dir.sync(std::slice::from_ref(&slice)).unwrap_err();
    assert!(matches!(error, CdiError::Node { .. }), "{error}");
    assert!(!world.is_ready(&slice));
}

#[test]
fn corrupt_tables_leave_nothing_that_may_be_wrong() {
    let mut world = world();
    let slice = device("1g.10gb", 0);
    world.dir.sync(std::slice::from_ref(&slice)).unwrap();
    fs::write(world.args.host.proc.join("driver/nvidia-caps/mig-minors"), "config 1\ngpu0/gi\n").unwrap();
    let error = world.dir.sync(std::slice::from_ref(&slice)).unwrap_err().to_string();
    assert!(error.contains("mig-minors line 2"), "{error}");
    assert!(!world.is_ready(&slice));
    assert_eq!(world.names(), Vec::<String>::new());
}

#[test]
fn a_folder_that_is_not_mounted_is_not_made_up() {
    let mut world = world();
    fs::remove_dir(&world.args.cdi_dir).unwrap();
    let error = world.dir.sync(&[device("1g.10gb", 0)]).unwrap_err().to_string();
    let folder = world.args.cdi_dir.display().to_string();
    assert!(error.contains(&folder) && error.contains("hostPath") && error.contains("--cdi-dir"), "{error}");
    assert!(!world.args.cdi_dir.exists(), "a folder that no runtime looks into");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let mut world = world();
    let slice = device("1g.10gb", 0);
    // Not by its mode, which does not hold root back.
    let in_the_way = world.path(&slice.device());
    fs::create_dir(&in_the_way).unwrap();
    let error = world.dir.sync(std::slice::from_ref(&slice)).unwrap_err().to_string();
    assert!(error.contains(&in_the_way.display().to_string()) && error.contains("writable"), "{error}");
    assert!(!world.is_ready(&slice));
}

#[test]
fn a_read_only_folder_has_its_own_advice() {
    for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
        let error =
            CdiError::Folder { what: "write", path: "/var/run/cdi/a.json".into(), source: kind.into() };
        let error = error.to_string();
        assert!(error.contains("/var/run/cdi/a.json") && error.contains("without readOnly"), "{error}");
    }
}
