#!/bin/sh
# Put behind each base image's tag the digest that it has in its registry today (`make pin`): in the
# Dockerfile (ARG PYTHON_IMAGE) and in compose.yaml (image:). Both files are written once every digest
# is known. Run it again for a newer one, and look at the difference.
set -eu
cd "$(dirname "$0")/.."

# The images that a registry has: ours is built.
images=$(sed -nE -e 's/^ARG PYTHON_IMAGE=//p' Dockerfile
         sed -nE -e 's/^    image: ([^ ]+:[^ ]+)$/\1/p' compose.yaml)
edits=
for image in $images; do
  tag=${image%@*}
  digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$tag") ||
    { echo "the registry gave no digest of $tag; nothing was changed" >&2; exit 1; }
  expr "$digest" : 'sha256:[0-9a-f]\{64\}$' >/dev/null ||
    { echo "the digest of $tag is '$digest'; expected sha256:… with 64 digits; nothing was changed" >&2; exit 1; }
  edits="$edits s|$image\$|$tag@$digest|;"
  echo "$tag@$digest"
done
sed -i -e "/^ARG PYTHON_IMAGE=/{$edits}" Dockerfile
sed -i -e "/^    image: /{$edits}" compose.yaml
