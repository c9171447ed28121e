//! The simulation's API server ([`slicegate_core::sim::api_server`]) against the real one: what the model answers to generated
//! requests of several clients, and what its watches tell, is what the API server does.
//!
//! A sequence that fails is printed with its seed: `CONFORMANCE_SEED=… cargo test -p slicegate-rig --test cluster conformance`
//! runs that one alone.

pub mod dice;
mod generate;
mod kinds;
mod mirror;
mod names;
mod request;
mod server;

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use kube::Client;
use serde_json::json;
use slicegate_core::sim::api_server::Revisions;
use slicegate_rig::{Options, Rig};

use dice::Dice;
use generate::Request;
use kinds::{MigNode, Mirrored, NODE, Pod, Workload};
use mirror::Mirror;
use names::Names;
use server::Server;

const NAMESPACE: &str = "conformance";
/// The label that tells whose objects they are.
const SEQUENCE: &str = "sequence";

const SEQUENCES: u64 = 240;
const REQUESTS: usize = 40;
/// Sequences that run at once.
const PARALLEL: usize = 12;
const CLIENTS: usize = 3;
/// Sequences that go on after the API server has forgotten what they did.
const FORGOTTEN: usize = 10;

/// One sequence: the same requests to both sides.
struct Sequence {
    seed: u64,
    dice: Dice,
    revisions: Revisions,
    names: Names,
    /// The last number that was given to something new.
    fresh: u32,
    nodes: Mirror<MigNode>,
    workloads: Mirror<Workload>,
    pods: Mirror<Pod>,
    log: Vec<String>,
}

impl Sequence {
    fn new(client: Client, seed: u64) -> Self {
        let revisions = Revisions::default();
        let server = Server::new(client, seed);
        let names: Vec<String> = ["a", "b"].iter().map(|name| format!("s{seed}-{name}")).collect();
        Self {
            seed,
            dice: Dice::new(seed),
            names: Names::default(),
            fresh: 0,
            nodes: Mirror::new(&revisions, server.clone(), &names, CLIENTS),
            workloads: Mirror::new(&revisions, server.clone(), &names, CLIENTS),
            pods: Mirror::new(&revisions, server, &names, CLIENTS),
            revisions,
            log: Vec::new(),
        }
    }

    async fn run(&mut self) -> Result<()> {
        for _ in 0..REQUESTS {
            self.step().await.map_err(|error| self.report(&error))?;
        }
        self.end().await.map_err(|error| self.report(&error))
    }

    async fn step(&mut self) -> Result<()> {
        let kind = self.dice.below(3);
        let (mut turn, nodes, workloads, pods) = self.turn();
        match kind {
            0 => turn.take(nodes).await,
            1 => turn.take(workloads).await,
            _ => turn.take(pods).await,
        }
    }

    /// What a request needs, and the kinds.
    fn turn(&mut self) -> (Turn<'_>, &mut Mirror<MigNode>, &mut Mirror<Workload>, &mut Mirror<Pod>) {
        let turn = Turn {
            dice: &mut self.dice,
            revisions: &self.revisions,
            names: &mut self.names,
            fresh: &mut self.fresh,
            log: &mut self.log,
        };
        (turn, &mut self.nodes, &mut self.workloads, &mut self.pods)
    }

    /// The last write of each kind closes the books: a watch that tells it has told everything before, and nothing else.
    async fn end(&mut self) -> Result<()> {
        let (mut turn, nodes, workloads, pods) = self.turn();
        turn.close(nodes).await?;
        turn.close(workloads).await?;
        turn.close(pods).await
    }

    /// After the API server has forgotten everything.
    async fn forgotten(&mut self) -> Result<()> {
        let (mut turn, nodes, workloads, pods) = self.turn();
        let outcome = async {
            turn.forgotten(nodes).await?;
            turn.forgotten(workloads).await?;
            turn.forgotten(pods).await
        };
        let outcome = outcome.await;
        outcome.map_err(|error| self.report(&error))
    }

    /// Writes that changed nothing.
    fn idle(&self) -> u64 {
        self.nodes.model.requests().idle
            + self.workloads.model.requests().idle
            + self.pods.model.requests().idle
    }

    fn report(&self, difference: &anyhow::Error) -> anyhow::Error {
        let mut text = format!("sequence {}, in which this was asked:\n", self.seed);
        for (number, line) in self.log.iter().enumerate() {
            let _ = writeln!(text, "  {number:3} {line}");
        }
        let seed = self.seed;
        anyhow!(
            "{text}  {difference:#}\nagain: CONFORMANCE_SEED={seed} cargo test -p slicegate-rig --test cluster conformance"
        )
    }
}

/// What a request needs of its sequence.
struct Turn<'a> {
    dice: &'a mut Dice,
    revisions: &'a Revisions,
    names: &'a mut Names,
    fresh: &'a mut u32,
    log: &'a mut Vec<String>,
}

impl Turn<'_> {
    async fn take<K: Mirrored>(&mut self, mirror: &mut Mirror<K>) -> Result<()> {
        let client = self.dice.index(CLIENTS);
        let request = generate::request(self.dice, mirror, client, self.fresh);
        self.ask(mirror, client, request).await
    }

    async fn ask<K: Mirrored>(
        &mut self,
        mirror: &mut Mirror<K>,
        client: usize,
        request: Request<K>,
    ) -> Result<()> {
        let kind = K::NAME;
        let said = match &request {
            Request::Write(write) => write.to_string(),
            Request::Race(one, two) => format!("at once: {one}; {two}"),
            Request::Get(key) => format!("get {kind} {key}"),
            Request::List => format!("list {kind}s"),
            Request::ListCached => format!("list {kind}s as of any time"),
            Request::Watch((version, real)) => format!("watch {kind}s from version {version} ({real})"),
            Request::Follow(watch, events) => format!("take {events} events of watch {watch} of {kind}s"),
        };
        self.log.push(format!("client {client}: {said}"));
        let names = &mut *self.names;
        let came = match request {
            Request::Write(write) => {
                mirror.last = Some(write.clone());
                mirror.write(names, client, &write).await?
            }
            Request::Race(one, two) => mirror.race(names, client, [&one, &two]).await?,
            Request::Get(key) => mirror.get(names, client, &key).await?,
            Request::List => mirror.list(names, client).await?,
            Request::ListCached => mirror.list_cached(names, client, self.revisions.current()).await?,
            Request::Watch(from) => mirror.watch(client, from).await?,
            Request::Follow(watch, events) => mirror.follow(names, watch, events).await?,
        };
        if let Some(line) = self.log.last_mut() {
            let _ = write!(line, "\n        → {came}");
        }
        Ok(())
    }

    async fn close<K: Mirrored>(&mut self, mirror: &mut Mirror<K>) -> Result<()> {
        let last = generate::last(self.dice, mirror, self.fresh);
        self.ask(mirror, 0, Request::Write(last)).await?;
        for watch in 0..mirror.watches.len() {
            let behind = mirror.behind(watch);
            self.ask(mirror, 0, Request::Follow(watch, behind)).await?;
        }
        self.ask(mirror, 0, Request::List).await
    }

    /// A watch that begins before what is remembered is refused; one that begins with a list goes on from there.
    async fn forgotten<K: Mirrored>(&mut self, mirror: &mut Mirror<K>) -> Result<()> {
        mirror.watches.clear();
        mirror.model.compact(self.revisions.current() + 1);
        let old = generate::versions(self.dice, mirror);
        let next = generate::last(self.dice, mirror, self.fresh);
        self.ask(mirror, 0, Request::Write(next)).await?;
        for version in old {
            self.ask(mirror, 0, Request::Watch(version)).await?;
        }
        self.ask(mirror, 0, Request::List).await?;
        if let Some(list) = mirror.views[0].list {
            self.ask(mirror, 0, Request::Watch(list)).await?;
        }
        self.close(mirror).await
    }
}

/// An API server, and nobody else who would change anything.
async fn api_server() -> Result<Rig> {
    // There is nobody to make service accounts.
    let options = Options::temporary()?
        .bare()
        .extra_arg("kube-apiserver", "--disable-admission-plugins=ServiceAccount");
    let rig = Rig::up(options).await?;
    let kueue = rig.repo().module("sigs.k8s.io/kueue").await?;
    let workloads = kueue.join("config/components/crd/bases/kueue.x-k8s.io_workloads.yaml");
    let files = [workloads, rig.repo().root().join("crds/mignodes.yaml")];
    for file in files {
        let yaml = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        rig.apply_yaml(&yaml).await?;
    }
    rig.apply_objects(vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}),
    ])
    .await?;
    Ok(rig)
}

/// What the sequences together must have met: without it, their agreement would say little.
const MET: [&str; 12] = [
    "→ 404 not found",
    "→ 409 already exists",
    "→ 409 the object has been modified",
    "→ 422 invalid",
    "→ gone",
    "Added version",
    "Modified version",
    "Deleted version",
    ", deleting,",
    ", deleting with grace,",
    "→ as of ",
    "; then 409 the object has been modified",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_model_answers_and_tells_what_the_api_server_does() -> Result<()> {
    let rig = api_server().await?;
    let seed = std::env::var("CONFORMANCE_SEED").ok();
    let seeds = match &seed {
        Some(seed) => vec![seed.parse().context("CONFORMANCE_SEED")?],
        None => (1..=SEQUENCES).collect(),
    };
    let mut ended = all(&rig.client().await?, seeds).await?;
    if seed.is_none() {
        for met in MET {
            assert!(ended.iter().flat_map(|it| &it.log).any(|line| line.contains(met)), "never met: {met}");
        }
        let idle: u64 = ended.iter().map(Sequence::idle).sum();
        assert!(idle > SEQUENCES, "only {idle} writes that change nothing");
    }

    // A change after all those that the sequences have made, so that their versions are old ones.
    let later = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "later"}});
    rig.apply_objects(vec![later]).await?;
    rig.restart("kube-apiserver").await?;
    ended.truncate(FORGOTTEN);
    for sequence in &mut ended {
        sequence.forgotten().await?;
        assert!(sequence.log.iter().any(|line| line.contains("→ 410 too old resource version")));
    }
    Ok(())
}

/// Runs sequences side by side.
async fn all(client: &Client, seeds: Vec<u64>) -> Result<Vec<Sequence>> {
    let mut running = futures::stream::iter(seeds)
        .map(|seed| {
            let mut sequence = Sequence::new(client.clone(), seed);
            tokio::spawn(async move { sequence.run().await.map(|()| sequence) })
        })
        .buffer_unordered(PARALLEL);
    let (mut ended, mut differ) = (Vec::new(), Vec::new());
    while let Some(sequence) = running.next().await {
        match sequence? {
            Ok(sequence) => ended.push(sequence),
            Err(error) => differ.push(error),
        }
    }
    let count = differ.len();
    match differ.into_iter().next() {
        Some(error) => Err(error.context(format!("{count} sequences differ, one of them is this"))),
        None => Ok(ended),
    }
}
