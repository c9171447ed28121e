//! `kubectl slices`: read-only views of the MIGNodes, of why a workload waits, of quotas, and of what Kueue is told of them.

mod cluster;
pub mod explain;
pub mod gpus;
pub mod kueue_config;
mod nodes;
pub mod quota;
pub mod simulate;

use std::io::IsTerminal;

use clap::{Args, Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};

use crate::api::MIGNode;

/// Look at MIG slices: which there are, who has them, what is free.
#[derive(Parser)]
#[command(name = "kubectl-slices", bin_name = "kubectl slices", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The kubeconfig context to use.
    #[arg(long, global = true)]
    context: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// One line per GPU node: its GPUs, slices, claims, and whether its agent is well.
    Nodes(Show),
    /// Every GPU with its slices drawn to scale.
    Gpus(Show),
    /// Why a workload waits: what it lacks, which nodes were considered and why each does not fit, and when it is queued again.
    Explain(Explain),
    /// What ClusterQueues lend, what namespaces may use and what the GPUs can form; and what of it does not agree.
    Quota(quota::Quota),
    /// What Kueue's Configuration needs so that one quota counts the GPU memory of slices of every profile.
    KueueConfig(kueue_config::KueueConfig),
}

#[derive(Args)]
struct Explain {
    /// The Workload, by its name or that of its job or pod.
    workload: String,
    /// Its namespace; that of the kubeconfig context if left out.
    #[arg(short, long)]
    namespace: Option<String>,
}

#[derive(Args)]
struct Show {
    /// Only these nodes.
    nodes: Vec<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster to ask.
    #[error("cannot reach a cluster: {0}")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The cluster has no Slicegate.
    #[error(
        "the cluster does not know MIGNodes: install Slicegate first (kubectl apply --server-side -k config/default)"
    )]
    NotInstalled,
    /// A node that was asked for is not there.
    #[error("node {0:?} has no MIGNode: it has no GPU, or no agent runs on it")]
    NoSuchNode(String),
    /// A kind that is needed is not there.
    #[error("the cluster does not know {kinds} of {group}: install Kueue v0.16 or later and Slicegate first")]
    NotServed {
        /// The kind, in the plural.
        kinds: String,
        /// Its API group.
        group: String,
    },
    /// What the controller looks at cannot be read.
    #[error(
        "cannot list {kinds} in the whole cluster, as the controller does: {source}; ask somebody who may, or see the check's \
         message in kubectl describe workload"
    )]
    List {
        /// The kind, in the plural.
        kinds: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// A workload that was asked for is not there.
    #[error(
        "namespace {namespace:?} has no Workload {name:?}, and none of a job or pod of that name; there are: {there}"
    )]
    NoSuchWorkload {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The Workloads of that namespace.
        there: String,
    },
    /// A workload that Slicegate has no part in.
    #[error(
        "Workload {name:?} in {namespace:?} lists no AdmissionCheck of Slicegate: it has no quota yet, or its ClusterQueue asks for \
         no check with controllerName slicegate.dev/mig"
    )]
    NotOurs {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The API server said no.
    #[error("cannot list MIGNodes: {0}")]
    Api(#[source] Box<kube::Error>),
    /// What is asked about is not there, or cannot be read.
    #[error("{0}")]
    Quota(String),
    /// What Kueue is told is not as it should be, or cannot be found out.
    #[error("{0}")]
    Kueue(String),
    /// The objects cannot be written in that format.
    #[error("cannot write the output: {0}")]
    Output(String),
}

/// Runs a command and returns what it prints.
pub async fn run(cli: Cli) -> Result<String, Error> {
    let client = client(cli.context).await?;
    let show = match &cli.command {
        Command::Nodes(show) | Command::Gpus(show) => show,
        Command::Explain(Explain { workload, namespace }) => {
            let namespace = namespace.as_deref().unwrap_or(client.default_namespace());
            return explain::explain(&client, namespace, workload).await;
        }
        Command::Quota(args) => return quota::run(client, args).await,
        Command::KueueConfig(args) => {
            let nodes = read(client.clone(), &[]).await?;
            return kueue_config::run(client, args, &nodes).await;
        }
    };
    let nodes = read(client, &show.nodes).await?;
    match (show.output, &cli.command) {
        (Output::Json, _) => serde_json::to_string_pretty(&nodes)
            .map(|text| text + "\n")
            .map_err(|e| Error::Output(e.to_string())),
        (Output::Yaml, _) => serde_saphyr::to_string(&nodes).map_err(|e| Error::Output(e.to_string())),
        (Output::Table, Command::Gpus(_)) => Ok(gpus::picture(&nodes, colour())),
        (Output::Table, _) => Ok(nodes::table(&nodes)),
    }
}

async fn client(context: Option<String>) -> Result<Client, Error> {
    let wrap = |e: Box<dyn std::error::Error + Send + Sync>| Error::Client(e);
    let Some(context) = context else {
        return Client::try_default().await.map_err(|e| wrap(Box::new(e)));
    };
    let kubeconfig = Kubeconfig::read().map_err(|e| wrap(Box::new(e)))?;
    let options = KubeConfigOptions { context: Some(context), ..KubeConfigOptions::default() };
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| wrap(Box::new(e)))?;
    Client::try_from(config).map_err(|e| wrap(Box::new(e)))
}

async fn read(client: Client, wanted: &[String]) -> Result<Vec<MIGNode>, Error> {
    let listed = Api::<MIGNode>::all(client).list(&ListParams::default()).await;
    let mut nodes = match listed {
        Ok(list) => list.items,
        Err(kube::Error::Api(status)) if status.code == 404 => return Err(Error::NotInstalled),
        Err(error) => return Err(Error::Api(Box::new(error))),
    };
    if let Some(missing) = wanted.iter().find(|name| !nodes.iter().any(|n| n.name_any() == **name)) {
        return Err(Error::NoSuchNode(missing.clone()));
    }
    nodes.retain(|node| wanted.is_empty() || wanted.contains(&node.name_any()));
    for node in &mut nodes {
        node.metadata.managed_fields = None;
    }
    Ok(nodes)
}

/// A table as all of them look.
fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// A table as text, without blanks at the ends of its lines.
fn lines(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
