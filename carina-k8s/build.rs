//! Says whether the tests against a real kube-apiserver can run: if not, they are reported as ignored.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=KUBEBUILDER_ASSETS");
    println!("cargo::rustc-check-cfg=cfg(real_control_plane)");
    if std::env::var_os("KUBEBUILDER_ASSETS").is_some() {
        println!("cargo::rustc-cfg=real_control_plane");
    }
}
