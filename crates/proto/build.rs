//! Compiles proto/mcl/v1 without protoc.
use prost::Message;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = ["mcl/v1/rank.proto", "mcl/v1/coordinator.proto", "mcl/v1/checkpoint.proto"];
    let set = protox::compile(files, [&root])?;
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    std::fs::write(Path::new(&out).join("files.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        // Chunks of slices are cut from one buffer, not copied.
        .bytes(".mcl.v1.PutSliceRequest.chunk")
        .bytes(".mcl.v1.GetSliceResponse.chunk")
        .compile_fds(set)?;
    Ok(())
}
