//! Which GPUs there are: from arguments, a file, or a cluster.

use std::path::Path;

use serde::Deserialize;
use serde_saphyr::Spanned;
use slicegate_core::simulate::inventory::Inventory;

use super::{Args, Error, cluster, models, read as read_file};
use crate::api::MIGNode;

/// The GPUs of the arguments.
pub async fn read(args: &Args) -> Result<Inventory, Error> {
    let mut inventory = match &args.inventory {
        Some(file) => from_file(file, args)?,
        None if args.from_cluster => {
            let client = crate::cli::client(args.context.clone()).await?;
            let nodes = crate::cli::read(client, &[]).await?;
            cluster::inventory(&nodes, args.movable, args.seed)
        }
        None => Inventory::default(),
    };
    let is_given = args.inventory.is_some() || args.from_cluster;
    let (mut gpus, mut named) = (args.gpus.clone(), args.model.clone());
    if named.is_empty() && gpus.len() <= 1 {
        named.extend((!is_given || !gpus.is_empty()).then(|| "A100-80GB".to_owned()));
    }
    if gpus.is_empty() && named.len() == 1 && !is_given {
        gpus.push(100);
    }
    if gpus.len() != named.len() {
        let (gpus, models) = (gpus.len(), named.len());
        return Err(Error::Input(format!(
            "--gpus is given {gpus} times and --model {models} times: give one --model for each --gpus"
        )));
    }
    for (count, name) in gpus.into_iter().zip(&named) {
        inventory
            .add(&models::find(name).map_err(|reason| Error::Input(format!("--model: {reason}")))?, count);
    }
    if inventory.gpus.is_empty() {
        return Err(Error::Input("there is no GPU on which slices can be placed".to_owned()));
    }
    Ok(inventory)
}

/// GPUs of one model, on nodes alike.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    model: Spanned<String>,
    gpus: Spanned<u32>,
    #[serde(default = "one")]
    nodes: u32,
}

fn one() -> u32 {
    1
}

/// The most GPUs of a file: a number beyond is a mistake, and would only take memory.
const MOST_GPUS: u64 = 1_000_000;

fn from_file(file: &Path, args: &Args) -> Result<Inventory, Error> {
    let text = read_file(file)?;
    let wrong = |line: u64, reason: String| Error::Line { file: file.to_owned(), line, reason };
    let unreadable = |error: serde_saphyr::Error| {
        let line = error.location().map_or(1, |location| location.line());
        let reason = error.without_snippet().to_string();
        wrong(line, reason.lines().next().unwrap_or_default().to_owned())
    };
    if text.lines().any(|line| line.trim_start_matches(['{', ' ', '"']).starts_with("kind")) {
        let objects: Objects = serde_saphyr::from_str(&text).map_err(unreadable)?;
        let nodes = match objects {
            Objects::List { items } => items,
            Objects::One(node) => vec![*node],
        };
        return Ok(cluster::inventory(&nodes, args.movable, args.seed));
    }
    let rows: Vec<Row> = serde_saphyr::from_str(&text).map_err(unreadable)?;
    let mut inventory = Inventory::default();
    let mut all = 0;
    for row in rows {
        let model =
            models::find(&row.model.value).map_err(|reason| wrong(row.model.referenced.line(), reason))?;
        all += u64::from(row.gpus.value) * u64::from(row.nodes);
        if all > MOST_GPUS {
            let reason = format!("{all} GPUs up to here, of which there can be {MOST_GPUS} at most");
            return Err(wrong(row.gpus.referenced.line(), reason));
        }
        (0..row.nodes).for_each(|_| inventory.add_node(&model, row.gpus.value));
    }
    Ok(inventory)
}

/// What kubectl prints.
#[derive(Deserialize)]
#[serde(untagged)]
enum Objects {
    List { items: Vec<MIGNode> },
    One(Box<MIGNode>),
}
