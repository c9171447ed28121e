//! Generates the clients and servers of the kubelet's services from their names, which is all that gRPC needs beside the
//! messages of this crate: no interface file, no protoc.

use tonic_build::manual::{Builder, Method, Service};

const CODEC: &str = "tonic_prost::ProstCodec";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let device_plugin = |name: &str| Service::builder().package("v1beta1").name(name);
    let messages = "crate::device_plugin::";
    Builder::new().compile(&[
        device_plugin("Registration")
            .comment("Where a device plugin makes itself known to the kubelet.")
            .method(
                method(messages, "register", "Register", "RegisterRequest", "Empty")
                    .comment(
                        "Offers a resource. The kubelet dials the plugin's socket and asks for its options before it \
                         answers, so the plugin must serve already.",
                    )
                    .build(),
            )
            .build(),
        device_plugin("DevicePlugin")
            .comment("What the kubelet asks of a device plugin.")
            .method(
                method(messages, "get_device_plugin_options", "GetDevicePluginOptions", "Empty", "DevicePluginOptions")
                    .comment("Which optional calls the plugin wants; asked once, during Register.")
                    .build(),
            )
            .method(
                method(messages, "list_and_watch", "ListAndWatch", "Empty", "ListAndWatchResponse")
                    .comment(
                        "The devices now, and the whole list again whenever one changes. When the stream ends, the kubelet \
                         counts every device of the resource as unhealthy until the plugin registers again.",
                    )
                    .server_streaming()
                    .build(),
            )
            .method(
                method(
                    messages,
                    "get_preferred_allocation",
                    "GetPreferredAllocation",
                    "PreferredAllocationRequest",
                    "PreferredAllocationResponse",
                )
                .comment("Which of the free devices the plugin would rather see given; the kubelet may do otherwise.")
                .build(),
            )
            .method(
                method(messages, "allocate", "Allocate", "AllocateRequest", "AllocateResponse")
                    .comment(
                        "At the admission of a pod, once per container and resource: what the container needs so that it can \
                         use the devices chosen. An error fails the pod for good. The kubelet keeps the answer and uses it \
                         again whenever the container restarts.",
                    )
                    .build(),
            )
            .method(
                method(
                    messages,
                    "pre_start_container",
                    "PreStartContainer",
                    "PreStartContainerRequest",
                    "PreStartContainerResponse",
                )
                .comment("Before every start of a container, if the options ask for it; must answer within 30 s.")
                .build(),
            )
            .build(),
    ]);
    let messages = "crate::pod_resources::";
    Builder::new().compile(&[Service::builder()
        .package("v1")
        .name("PodResourcesLister")
        .comment("What the kubelet has given to which container.")
        .method(
            method(messages, "list", "List", "ListPodResourcesRequest", "ListPodResourcesResponse")
                .comment(
                    "What every active pod holds. Plain init containers are left out; kubelets before 1.34 also list pods \
                     that have ended.",
                )
                .build(),
        )
        .method(
            method(
                messages,
                "get_allocatable_resources",
                "GetAllocatableResources",
                "AllocatableResourcesRequest",
                "AllocatableResourcesResponse",
            )
            .comment("Every healthy device, held or not: what the kubelet has understood of the last ListAndWatch list.")
            .build(),
        )
        .method(
            method(messages, "get", "Get", "GetPodResourcesRequest", "GetPodResourcesResponse")
                .comment("What one pod holds.")
                .build(),
        )
        .build()]);
}

fn method(
    messages: &str,
    name: &str,
    route: &str,
    input: &str,
    output: &str,
) -> tonic_build::manual::MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("{messages}{input}"))
        .output_type(format!("{messages}{output}"))
        .codec_path(CODEC)
}
