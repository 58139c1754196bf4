//! What the fuzz targets share with the SDK's own tests.

pub mod checks;
pub mod seeds;
