//! Writes true bytes as corpus files.

use std::path::Path;

use sealwire_client_fuzz::seeds;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (target, _) in seeds::CHECKS {
        let corpus = root.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)?;
        let all = seeds::of(target, &root.join("../../protocol/vectors"));
        for (number, bytes) in all.into_iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{number}")), bytes)?;
        }
    }
    Ok(())
}
