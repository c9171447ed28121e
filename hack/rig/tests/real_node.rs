//! A real node at work. It needs root and what `hack/prerequisites node` installs, and the first build of the programs takes
//! minutes, so it runs on request: `cargo test -p slicegate-rig --test real_node -- --ignored`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use slicegate_rig::operator::Operator;
use slicegate_rig::{Image, Lifetime, Options, ProcessId, RealNode, RealNodeSpec, Rig};

async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(found) = check().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "still waiting: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn pod_spec(image: &str, script: &[&str]) -> Value {
    json!({
        "nodeSelector": {"zone": "east"},
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": image, "imagePullPolicy": "Never", "args": script}],
    })
}

/// Runs a pod to its end and gives what it has written.
async fn run(rig: &Rig, node: &RealNode<'_>, name: &str, mut spec: Value) -> Result<String> {
    spec["restartPolicy"] = json!("Never");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    let started = Instant::now();
    rig.apply_yaml(&pod.to_string()).await?;
    let pods: Api<Pod> = Api::default_namespaced(rig.client().await?);
    let phase = eventually(name, async || {
        let phase = pods.get(name).await?.status.and_then(|status| status.phase);
        Ok(phase.filter(|phase| matches!(phase.as_str(), "Succeeded" | "Failed")))
    })
    .await?;
    println!("pod {name}: {phase} after {:.1} s", started.elapsed().as_secs_f64());
    let text = node.logs("default", name, "main")?;
    ensure!(phase == "Succeeded", "{name} {phase}: {text}");
    Ok(text)
}

async fn running(rig: &Rig, app: &str) -> Result<(Pod, ContainerStatus)> {
    let pods: Api<Pod> = Api::default_namespaced(rig.client().await?);
    eventually("a running pod", async || {
        let found = pods.list(&ListParams::default().labels(&format!("app={app}"))).await?;
        Ok(found.items.into_iter().find_map(|pod| {
            let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.clone();
            container.state.as_ref()?.running.as_ref()?;
            container.ready.then_some((pod, container))
        }))
    })
    .await
}

async fn boot_id(rig: &Rig, name: &str) -> Result<String> {
    let nodes: Api<Node> = Api::all(rig.client().await?);
    let info = nodes.get(name).await?.status.and_then(|status| status.node_info);
    Ok(info.context("node info")?.boot_id)
}

/// What of a node can be seen on the machine. Other rigs may be at work beside it, and numbers are used again: everything is
/// known by what is never used twice.
struct Traces {
    dir: PathBuf,
    processes: Vec<ProcessId>,
    cgroup: String,
    link: PathBuf,
    link_index: String,
}

impl Traces {
    fn of(dir: &Path, node: &str) -> Result<Self> {
        let file = dir.join("nodes").join(node).join("running.json");
        let running: Value = serde_json::from_slice(&fs::read(file)?)?;
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", running["init"]))?;
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let inside = fs::read_link(entry.path().join("ns/pid")).is_ok_and(|it| it == namespace);
            if inside || running["holder"] == pid {
                processes.extend(ProcessId::of(pid));
            }
        }
        let link = PathBuf::from(format!("/sys/class/net/slicegate{}/ifindex", running["link"]));
        let cgroup = running["cgroup"].as_str().context("a control group")?.to_owned();
        Ok(Self { dir: dir.to_owned(), processes, cgroup, link_index: fs::read_to_string(&link)?, link })
    }

    fn processes(&self) -> usize {
        self.processes.iter().filter(|process| process.is_running()).count()
    }

    fn cgroups(&self) -> usize {
        let root = Path::new("/sys/fs/cgroup");
        let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        below.chain([root.to_owned()]).filter(|folder| folder.join(&self.cgroup).is_dir()).count()
    }

    fn links(&self) -> usize {
        usize::from(fs::read_to_string(&self.link).is_ok_and(|index| index == self.link_index))
    }

    fn mounts(&self) -> usize {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        mounts.lines().filter(|line| line.contains(&*self.dir.to_string_lossy())).count()
    }

    fn left(&self) -> [usize; 4] {
        [self.processes(), self.cgroups(), self.links(), self.mounts()]
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a cluster with a real node, as root"]
async fn a_real_node_runs_pods() -> Result<()> {
    let rig = Rig::up(Options::temporary()?).await?;
    let started = Instant::now();
    let spec = RealNodeSpec::new("gpu-real").label("zone", "east");
    let node = rig.add_real_node(spec).await?;
    println!("node: ready after {:.1} s", started.elapsed().as_secs_f64());
    node.import_image(&Image::busybox().await?).await?;

    pods_run(&rig, &node).await?;
    pods_reach_the_api_server(&rig, &node).await?;
    files_are_private(&node)?;
    running_pods_survive(&rig, &node).await?;

    let traces = Traces::of(rig.dir(), node.name())?;
    assert!(traces.processes() > 3 && traces.cgroups() > 0 && traces.links() == 1);
    rig.down().await?;
    assert_eq!(traces.left(), [0; 4], "processes, control groups, links, mounts");
    assert!(!traces.dir.exists());
    Ok(())
}

async fn pods_run(rig: &Rig, node: &RealNode<'_>) -> Result<()> {
    let text =
        run(rig, node, "greeting", pod_spec("busybox", &["sh", "-c", "echo hello from $(hostname)"])).await?;
    assert!(text.contains("stdout F hello from greeting"), "{text}");
    assert_eq!(rig.kubectl(["logs", "greeting"]).await?, "hello from greeting\n");
    Ok(())
}

async fn pods_reach_the_api_server(rig: &Rig, node: &RealNode<'_>) -> Result<()> {
    rig.apply_kustomize("crds").await?;
    rig.kubectl([
        "create",
        "clusterrolebinding",
        "all",
        "--clusterrole=cluster-admin",
        "--serviceaccount=default:default",
    ])
    .await?;
    let operator = Operator::find()?;
    let programs = operator.slicegate().parent().context("a folder")?;
    let image = Image::slicegate(rig.repo(), programs, rig.dir()).await?;
    let started = Instant::now();
    node.import_image(&image).await?;
    println!("image slicegate: imported after {:.1} s", started.elapsed().as_secs_f64());
    let mut spec = pod_spec("slicegate", &["nodes"]);
    spec["containers"][0]["command"] = json!(["/usr/bin/kubectl-slices"]);
    spec["securityContext"] = json!({"runAsUser": 65532});
    let text = run(rig, node, "in-cluster", spec).await?;
    assert!(!text.is_empty());
    println!("{text}");
    Ok(())
}

fn files_are_private(node: &RealNode<'_>) -> Result<()> {
    for path in ["/dev/nvidia0", "/run/cdi/spec.json", "/var/lib/slicegate/journal", "/etc/private"] {
        let there = node.path(path)?;
        fs::create_dir_all(there.parent().context("a folder")?)?;
        fs::write(&there, "private")?;
        assert!(!Path::new(path).exists(), "{path} has reached the machine");
    }
    assert!(node.path("/var/lib/kubelet/device-plugins/kubelet.sock")?.exists());
    Ok(())
}

async fn running_pods_survive(rig: &Rig, node: &RealNode<'_>) -> Result<()> {
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "sleeper"},
        "spec": {
            "selector": {"matchLabels": {"app": "sleeper"}},
            "template": {
                "metadata": {"labels": {"app": "sleeper"}},
                "spec": pod_spec("busybox", &["sh", "-c", "exec sleep 100000"]),
            },
        },
    });
    let started = Instant::now();
    rig.apply_yaml(&deployment.to_string()).await?;
    let (pod, before) = running(rig, "sleeper").await?;
    println!("deployment: running after {:.1} s", started.elapsed().as_secs_f64());
    let name = pod.metadata.name.context("a name")?;

    for (what, first_line) in [("kubelet", "\"Kubelet version\""), ("containerd", "\"starting containerd\"")]
    {
        let started = Instant::now();
        match what {
            "kubelet" => node.restart_kubelet().await?,
            _ => node.restart_containerd().await?,
        }
        let log = fs::read_to_string(rig.dir().join(format!("logs/{what}-{}.log", node.name())))?;
        assert_eq!(log.matches(first_line).count(), 2, "{what} has started twice");
        println!("{what}: restarted after {:.1} s", started.elapsed().as_secs_f64());
        // A kubelet that has just started hears of its pods a moment after it is healthy.
        let answer = eventually("kubectl exec", async || {
            Ok(rig.kubectl(["exec", &name, "--", "echo", "still here"]).await.ok())
        })
        .await?;
        assert_eq!(answer, "still here\n");
        let (_, after) = running(rig, "sleeper").await?;
        assert_eq!((after.state, after.restart_count), (before.state.clone(), 0));
    }

    let boot = boot_id(rig, node.name()).await?;
    let address = node.address()?;
    let started = Instant::now();
    node.reboot().await?;
    println!("reboot: ready after {:.1} s", started.elapsed().as_secs_f64());
    let (_, after) = eventually("the pod after the reboot", async || {
        Ok(Some(running(rig, "sleeper").await?).filter(|(_, it)| it.container_id != before.container_id))
    })
    .await?;
    println!("reboot: pod back after {:.1} s", started.elapsed().as_secs_f64());
    assert!(after.container_id.is_some());
    assert_ne!(boot_id(rig, node.name()).await?, boot);
    assert_eq!(node.address()?, address);
    let there = |path: &str| Ok::<_, anyhow::Error>(node.path(path)?.exists());
    assert!(!there("/dev/nvidia0")? && !there("/run/cdi/spec.json")? && !there("/etc/private")?);
    assert!(there("/var/lib/slicegate/journal")?);
    run(rig, node, "after-reboot", pod_spec("busybox", &["true"])).await?;
    Ok(())
}

/// Plays a program that is killed: the test below runs it in a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is run by a_killed_owner_leaves_nothing"]
async fn owner() -> Result<()> {
    let Some(dir) = std::env::var_os("RIG_TEST_DIR").map(PathBuf::from) else { return Ok(()) };
    let rig = Rig::up(Options::in_dir(&dir, Lifetime::Owned)).await?;
    let (first, second) = futures::try_join!(
        rig.add_real_node(RealNodeSpec::new("first")),
        rig.add_real_node(RealNodeSpec::new("second")),
    )?;
    assert_ne!(first.address()?, second.address()?);
    fs::write(dir.join("both-up"), "")?;
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a cluster with two real nodes, as root"]
async fn a_killed_owner_leaves_nothing() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("rig-real-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["owner", "--exact", "--ignored"])
        .env("RIG_TEST_DIR", &dir)
        .stdout(Stdio::null())
        .spawn()?;
    eventually("both nodes", async || {
        ensure!(owner.try_wait()?.is_none(), "the owner has ended");
        Ok(dir.join("both-up").exists().then_some(()))
    })
    .await?;
    let traces = [Traces::of(&dir, "first")?, Traces::of(&dir, "second")?];
    owner.kill()?;
    owner.wait()?;
    eventually("nothing left of the nodes", async || {
        Ok(traces.iter().all(|it| it.left() == [0; 4]).then_some(()))
    })
    .await?;
    fs::remove_dir_all(dir)?;
    Ok(())
}
