//! Reads PEM blocks from a file or from the configuration.

use crate::disk;
use crate::model::tls::Pem;

/// The bytes of a PEM. The error message names the PEM.
pub(crate) fn read(pem: &Pem) -> Result<Vec<u8>, String> {
    match pem {
        Pem::Inline { bytes, .. } => Ok(bytes.to_vec()),
        Pem::File(path) => {
            disk::bytes(&path.value, MAX_BYTES).map_err(|error| format!("can't be read: {error}"))
        }
    }
}

/// The most bytes of a file. Real certificates, lists and bundles are far smaller.
const MAX_BYTES: u64 = 16 << 20;
