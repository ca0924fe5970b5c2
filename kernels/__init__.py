"""The tripartite contrastive loss: its definition, its fast forms, its distributed form."""
