//! The migrations are compiled into the relay: a new file must compile it anew.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
