"""The one figure of a benchmark's record that its reader asks for first, in words."""

# our own implementation by benchmark: the first of these that was timed
_OURS = {"loss": ("triton", "torch"), "step": ("engine",), "decode": ("loader",)}


def headline(record: dict) -> str:
    """Return a record's headline figure; "nothing was timed" where there is none."""
    rows = [row for row in _HEADLINES[record["benchmark"]](record["rows"]) if row]
    return rows[0] if rows else "nothing was timed"


def _loss(rows):
    timed = [row for row in rows if row.get("total_s")]
    for name in _OURS["loss"]:
        mine = [row for row in timed if row["implementation"] == name]
        if not mine:
            continue
        row = max(mine, key=lambda one: one["size"])
        text = f"{name}: B = {row['size']:,} forward + backward {1e3 * row['total_s']:,.2f} ms"
        base = [
            one for one in timed if one["implementation"] == "eager" and one["size"] == row["size"]
        ]
        yield text + (f", {row['total_s'] / base[0]['total_s']:.2f} of eager's" if base else "")


def _decode(rows):
    for row in rows:
        mine = row["implementation"] in _OURS["decode"] and row.get("work") == "training"
        if mine and row.get("photographs_per_s"):
            yield f"loader: {row['photographs_per_s']:,.0f} training photographs/s"


def _step(rows):
    mine = [
        row for row in rows if row["implementation"] in _OURS["step"] and row.get("patients_per_s")
    ]
    if mine:
        row = max(mine, key=lambda one: one["batch"])
        text = f"engine: B = {row['batch']:,} {row['patients_per_s']:,.1f} patients/s"
        share = row.get("mfu_gemm")
        yield text + ("" if share is None else f", MFU {share:.1%}")


def _train(rows):
    for row in rows:
        if row.get("patients_per_s") and row["input"] == "shards":
            text = f"{row['patients_per_s']:,.1f} patients/s, {row['data_share']:.1%} waiting"
            share = row.get("of_synthetic")
            yield text + ("" if share is None else f", {share:.0%} of synthetic input")


_HEADLINES = {"loss": _loss, "decode": _decode, "step": _step, "train": _train}
