//! Compiles the shim against the libtorch that torch-sys found.
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lib = PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB")?);
    let include = lib.parent().ok_or("libtorch's lib folder has no parent")?.join("include");
    println!("cargo:rerun-if-changed=shim");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .define("GLOG_USE_GLOG_EXPORT", None)
        .include("shim")
        .include("shim/gloo_stubs")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(["shim/engine.cpp", "shim/autograd.cpp", "shim/device.cpp"])
        .compile("mcl_collective_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // Crates that make executables put this folder into their run path.
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    Ok(())
}
