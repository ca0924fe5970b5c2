"""Prompts for common findings, to begin with: what a model's folder gets as prompts.yaml."""

STARTER_PROMPTS_HEADER = """\
# Prompts by class, for `retclip classify` and `retclip eval zeroshot`: a class is the mean of its
# prompts. {eye} becomes the eye's name in the prompt's language, by the head that is asked:
#   left photograph              left head      left eye    左眼
#   right photograph             right head     right eye   右眼
#   both eyes, or eye unknown    patient head   both eyes   双眼
# `negative` is what each class is held against where a photograph may show several of them.
# The published weights were trained on Chinese reports: keep the Chinese prompts for those.
"""
_HEALTHY = ("{eye}眼底未见明显异常。", "{eye}正常眼底。", "{eye}: no abnormality seen.")
_FINDINGS = {
    "diabetic retinopathy": (
        "{eye}糖尿病视网膜病变。",
        "{eye}视网膜散在微血管瘤、出血及硬性渗出,考虑糖尿病视网膜病变。",
        "{eye}: diabetic retinopathy.",
        "{eye}: microaneurysms, haemorrhages and hard exudates.",
    ),
    "glaucoma": (
        "{eye}可疑青光眼,杯盘比增大。",
        "{eye}青光眼性视神经改变。",
        "{eye}: enlarged cup-to-disc ratio, suspect glaucoma.",
    ),
    "age-related macular degeneration": (
        "{eye}年龄相关性黄斑变性。",
        "{eye}黄斑区玻璃膜疣。",
        "{eye}: age-related macular degeneration with drusen.",
    ),
    "myopic fundus": (
        "{eye}高度近视眼底改变。",
        "{eye}豹纹状眼底,视盘颞侧近视弧。",
        "{eye}: high myopia, tessellated fundus with peripapillary atrophy.",
    ),
    "retinal vein occlusion": (
        "{eye}视网膜静脉阻塞,静脉迂曲扩张伴火焰状出血。",
        "{eye}: retinal vein occlusion with flame-shaped haemorrhages.",
    ),
    "hypertensive retinopathy": (
        "{eye}高血压视网膜病变,动脉变细,动静脉交叉压迹。",
        "{eye}: hypertensive retinopathy, narrowed arterioles and arteriovenous nicking.",
    ),
    "cataract": (
        "{eye}屈光间质混浊,考虑白内障。",
        "{eye}: hazy view of the fundus, cataract likely.",
    ),
    "epiretinal membrane": ("{eye}黄斑前膜。", "{eye}: epiretinal membrane."),
}
# class to prompts with it and without it
STARTER_PROMPTS = {
    "normal": {
        "positive": list(_HEALTHY),
        "negative": ["{eye}眼底异常。", "{eye}: abnormal fundus."],
    },
    **{
        name: {"positive": list(prompts), "negative": list(_HEALTHY)}
        for name, prompts in _FINDINGS.items()
    },
}
