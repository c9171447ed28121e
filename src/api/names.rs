//! Every key that Slicegate puts on, or looks for in, objects of the cluster.

/// API group of our own types.
pub const GROUP: &str = "slicegate.dev";
/// `spec.controllerName` of the AdmissionChecks that are ours.
pub const CONTROLLER_NAME: &str = "slicegate.dev/mig";
/// Scheduling gate with which every pod that asks for MIG slices is created.
pub const GATE: &str = "slicegate.dev/claim";
/// Name of what adds that gate: a MutatingAdmissionPolicy and its binding, or a webhook and its configuration.
pub const GATE_NAME: &str = "gate.slicegate.dev";
/// Names of what gives pods GPU memory, in that configuration: for each of the namespaces' labels a webhook.
pub const MEMORY_WEBHOOKS: [&str; 2] = ["memory.slicegate.dev", "memory-instaslice.slicegate.dev"];
/// Label that carries a Workload's uid to its pods, through `podSetUpdates`.
pub const WORKLOAD_LABEL: &str = "slicegate.dev/workload";
/// Annotation with which the owner of a pod allows, by `true`, that it is evicted so that another workload finds room in one
/// piece: the pod that its controller makes instead gets slices elsewhere. It belongs on the pod template.
pub const RELOCATABLE: &str = slicegate_core::plan::RELOCATABLE;
/// Annotation with which the controller marks each MIGNode: its version. An agent whose own is further from it than an update
/// goes says so in a condition.
pub const CONTROLLER_VERSION: &str = "slicegate.dev/controller-version";
/// Annotation with which a leader that takes over from one that has not said goodbye marks MIGNodes, and pods that may be about
/// to be released: the Lease's uid and the number of its term. What the former leader may still send expects another one.
pub const TERM: &str = "slicegate.dev/term";
/// Field manager of the controller's writes; for an AdmissionCheck's entry in a Workload, with `/` and its name behind it.
pub const CONTROLLER_MANAGER: &str = "slicegate-controller";

/// The controller's field manager for the entry of one AdmissionCheck in `Workload.status.admissionChecks`. An apply takes back
/// what its manager has applied before and no longer sends: with one manager for all, the entry of one check would take the
/// entry of another check of the same workload away.
pub fn check_manager(check: &str) -> String {
    /// `FieldManagerMaxLength` (`apimachinery/pkg/apis/meta/v1/validation`).
    const LONGEST: usize = 128;
    format!("{CONTROLLER_MANAGER}/{check}").chars().take(LONGEST).collect()
}

/// Field manager of the agents' writes.
pub const AGENT_MANAGER: &str = "slicegate-agent";

/// Label by which Kubernetes names a node's host, and by which pods are steered.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// Label with which Kueue marks the pods of a pod set (`pkg/controller/constants`, `PodSetLabel`).
pub const POD_SET_LABEL: &str = "kueue.x-k8s.io/podset";
/// Label by which a job or pod names its LocalQueue.
pub const QUEUE_LABEL: &str = "kueue.x-k8s.io/queue-name";
/// Label, or with a feature gate annotation, by which pods of a group name it and so their Workload (`pkg/controller/jobs/pod`,
/// `GroupNameLabel`).
pub const POD_GROUP: &str = "kueue.x-k8s.io/pod-group-name";
/// Label or annotation by which pods name a Workload that was made before them (`pkg/controller/constants`,
/// `PrebuiltWorkloadLabel`).
pub const PREBUILT_WORKLOAD: &str = "kueue.x-k8s.io/prebuilt-workload-name";
/// Annotation of a Workload that takes over from another, whose `namespace/name` it gives (`pkg/workloadslicing`,
/// `WorkloadSliceReplacementFor`).
pub const REPLACEMENT_FOR: &str = "kueue.x-k8s.io/workload-slice-replacement-for";
/// `spec.controllerName` of Kueue's ProvisioningRequest checks (`apis/kueue/v1beta2`, `ProvisioningRequestControllerName`).
pub const PROVISIONING_CONTROLLER: &str = "kueue.x-k8s.io/provisioning-request";
/// Scheduling gate that Kueue's pod integration removes at admission.
pub const KUEUE_GATE: &str = "kueue.x-k8s.io/admission";
/// The resource that counts GPU memory over all profiles, in GiB as the profiles' names say.
pub const GPU_MEMORY: &str = "slicegate.dev/gpu-memory";
/// Label of namespaces, with the value `enabled`, whose pods are given that resource for the profiles that they ask for.
pub const GPU_MEMORY_QUOTA_LABEL: &str = "slicegate.dev/gpu-memory-quota";
/// InstaSlice's label of such namespaces, with the value `true` (its `docs/instaslice_kube_quota_int.md`).
pub const INSTASLICE_LABEL: &str = "instaslice.redhat.com/enable-mutation";
/// InstaSlice's resource for the same, in bytes: a GiB is `1Gi` of it.
pub const INSTASLICE_MEMORY: &str = "instaslice.redhat.com/accelerator-memory-quota";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_a_field_manager_of_its_own() {
        assert_eq!(check_manager("mig"), "slicegate-controller/mig");
        assert_ne!(check_manager("mig-a"), check_manager("mig-b"));
        assert_eq!(check_manager(&"a".repeat(253)).len(), 128, "the API server takes no longer one");
    }
}
