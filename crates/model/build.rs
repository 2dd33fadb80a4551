//! Gives this crate's test binaries the folder of libtorch, so that they run without `LD_LIBRARY_PATH`.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(root) = std::env::var_os("LIBTORCH") {
        let lib = PathBuf::from(root).join("lib");
        // Not `-tests`: that one leaves out the library's own unit tests.
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}
