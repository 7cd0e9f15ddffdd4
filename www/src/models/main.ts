import "../tokens.css";
import { closeWaysOut } from "luthier-web";
import { mount } from "svelte";
import { registerServiceWorker } from "../../offline/register";
import Models from "./Models.svelte";

closeWaysOut();
registerServiceWorker();
mount(Models, { target: document.getElementById("app")! });
