//! `kubectl slices nodes`.

use kube::ResourceExt;

use crate::api::MIGNode;

/// One line per node.
pub fn table(nodes: &[MIGNode]) -> String {
    if nodes.is_empty() {
        return "No MIGNodes: no node has a GPU with an agent.\n".to_owned();
    }
    let mut table = super::table();
    table.set_header(["NODE", "GPUS", "SLICES", "IN USE", "CLAIMED", "FOREIGN", "READY", "MESSAGE"]);
    for node in nodes {
        let status = node.status.clone().unwrap_or_default();
        let summary = status.summary.unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        table.add_row([
            node.name_any(),
            summary.gpus,
            summary.slices.to_string(),
            summary.in_use.to_string(),
            node.spec.claims.iter().map(|c| c.slices).sum::<u32>().to_string(),
            status.foreign.len().to_string(),
            ready.map_or_else(|| "Unknown".to_owned(), |c| c.status.clone()),
            ready.filter(|c| c.status != "True").map(|c| c.message.clone()).unwrap_or_default(),
        ]);
    }
    super::lines(&mut table)
}
