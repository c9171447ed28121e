//! `kubectl slices gpus`: every GPU drawn to scale.

use std::fmt::Write;

use kube::ResourceExt;

use crate::api::MIGNode;
use crate::api::mig_node::{GpuStatus, Health, MIGNodeStatus, MigMode, SliceState};

/// Width of a GPU's picture, in characters: divisible by 4, 8 and 12 placement units.
const WIDTH: usize = 72;

/// What the marks mean.
pub const LEGEND: &str = "* in use   ? process without pod   (none) idle   + being made   - being taken away   ! failed   # not Slicegate's   . free   ~ free, kept for a workload that waits";

struct Block {
    start: usize,
    size: usize,
    profile: String,
    mark: char,
    colour: u8,
}

/// All GPUs of all nodes, with a legend.
pub fn picture(nodes: &[MIGNode], colour: bool) -> String {
    if nodes.is_empty() {
        return "No MIGNodes: no node has a GPU with an agent.\n".to_owned();
    }
    let mut text = String::new();
    for node in nodes {
        text.push_str(&node_picture(node, colour));
    }
    text.push_str(LEGEND);
    text.push('\n');
    text
}

/// The GPUs of one node.
pub fn node_picture(node: &MIGNode, colour: bool) -> String {
    let status = node.status.clone().unwrap_or_default();
    let mut text = String::new();
    let summary = status.summary.clone().unwrap_or_default();
    let _ = writeln!(text, "{}  {}", node.name_any(), summary.gpus);
    for gpu in &status.gpus {
        let _ = writeln!(text, "  {:>2} {}", gpu.index, gpu_picture(node, &status, gpu, colour));
    }
    text
}

fn gpu_picture(node: &MIGNode, status: &MIGNodeStatus, gpu: &GpuStatus, colour: bool) -> String {
    if gpu.mig_mode != MigMode::Enabled {
        return format!("MIG mode {:?}", gpu.mig_mode);
    }
    let units = status.models.iter().find(|m| m.name == gpu.model).map_or(8, |m| usize::from(m.units)).max(1);
    let mut blocks: Vec<Block> = status
        .slices
        .iter()
        .filter(|s| s.gpu == gpu.uuid)
        .map(|s| {
            let (mark, colour) = match s.state {
                SliceState::InUse if s.pod.is_none() && s.process.is_some() => ('?', 31),
                SliceState::InUse => ('*', 32),
                SliceState::Idle => (' ', 36),
                SliceState::Creating => ('+', 33),
                SliceState::Draining => ('-', 35),
                SliceState::Failed => ('!', 31),
                SliceState::Unknown => ('?', 90),
            };
            Block { start: s.start.into(), size: s.size.into(), profile: s.profile.clone(), mark, colour }
        })
        .chain(status.foreign.iter().filter(|f| f.gpu == gpu.uuid).map(|f| Block {
            start: f.start.into(),
            size: f.size.into(),
            profile: f.profile.clone(),
            mark: '#',
            colour: 90,
        }))
        .collect();
    blocks.sort_by_key(|b| (b.start, b.mark == '+'));
    let unit = WIDTH / units;
    let kept: Vec<(usize, usize)> = node
        .spec
        .holds
        .iter()
        .filter(|hold| hold.gpu == gpu.uuid)
        .map(|hold| (hold.start.into(), usize::from(hold.start) + usize::from(hold.size)))
        .collect();
    let free = |line: &mut String, units: std::ops::Range<usize>| {
        for at in units {
            let is_kept = kept.iter().any(|(start, end)| (*start..*end).contains(&at));
            line.push_str(&if is_kept { "~" } else { "." }.repeat(unit - 1));
            line.push('|');
        }
    };
    let mut line = String::from("|");
    let mut at = 0;
    for block in blocks {
        // What is wanted in the place of something that has not gone yet is not drawn over it.
        if block.start < at || block.start + block.size > units {
            continue;
        }
        free(&mut line, at..block.start);
        let width = unit * block.size - 1;
        let mut label = block.profile;
        label.push(block.mark);
        let cell = format!("{label:<width$.width$}");
        if colour {
            let _ = write!(line, "\x1b[{}m{cell}\x1b[0m|", block.colour);
        } else {
            let _ = write!(line, "{cell}|");
        }
        at = block.start + block.size;
    }
    free(&mut line, at..units);
    if gpu.health == Health::Unhealthy {
        let _ = write!(line, " unhealthy: {}", gpu.message.as_deref().unwrap_or("no message"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MIGNodeSpec;

    fn node() -> MIGNode {
        let mut node = MIGNode::new("gpu-a", MIGNodeSpec::default());
        let status = r"
summary: {gpus: 2 × NVIDIA A100-SXM4-80GB, slices: 2, inUse: 1}
models: [{name: A100, units: 8, profiles: []}]
gpus:
- {uuid: GPU-0, index: 0, model: A100, migMode: Enabled, health: Healthy}
- {uuid: GPU-1, index: 1, model: A100, migMode: Disabled, health: Healthy}
slices:
- {gpu: GPU-0, profile: 3g.40gb, start: 4, size: 4, state: InUse, since: '2026-01-01T00:00:00Z'}
- {gpu: GPU-0, profile: 1g.10gb, start: 1, size: 1, state: Creating, since: '2026-01-01T00:00:00Z'}
- {gpu: GPU-0, profile: 1g.10gb, start: 3, size: 1, state: InUse, since: '2026-01-01T00:00:00Z', process: 4711}
foreign: [{gpu: GPU-0, profile: 1g.10gb, start: 2, size: 1}]
";
        node.status = Some(serde_saphyr::from_str(status).unwrap());
        node
    }

    #[test]
    fn slices_are_drawn_to_scale() {
        let text = picture(&[node()], false);
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "gpu-a  2 × NVIDIA A100-SXM4-80GB",
                "   0 |........|1g.10gb+|1g.10gb#|1g.10gb?|3g.40gb*                           |",
                "   1 MIG mode Disabled",
                LEGEND,
            ]
        );
    }

    #[test]
    fn room_that_is_kept_can_be_told_from_room_that_is_free() {
        let mut node = node();
        let hold = "{workload: {namespace: a, name: large, uid: u}, gpu: GPU-0, start: 0, size: 2, until: '2026-01-01T00:00:00Z'}";
        node.spec.holds = vec![serde_saphyr::from_str(hold).unwrap()];
        let text = picture(&[node], false);
        let line = text.lines().nth(1).unwrap();
        assert_eq!(line, "   0 |~~~~~~~~|1g.10gb+|1g.10gb#|1g.10gb?|3g.40gb*                           |");
    }

    #[test]
    fn colours_leave_the_text_as_it_is() {
        let coloured = picture(&[node()], true);
        assert!(coloured.contains("\x1b[32m3g.40gb*"));
        let plain: String = coloured
            .split('\x1b')
            .enumerate()
            .map(|(i, part)| if i == 0 { part } else { part.split_once('m').map_or("", |(_, rest)| rest) })
            .collect();
        assert_eq!(plain, picture(&[node()], false));
    }
}
